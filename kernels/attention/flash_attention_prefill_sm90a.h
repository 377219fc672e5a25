// The Hopper prefill kernels, as their entry (flash_attention_sm90a.cu) sees them. One .cu a head_dim, so that they
// build in parallel.
#pragma once

#include "kernels/attention/flash_attention_params.h"
#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"
#include "kernels/device/tma_sm90.cuh"

namespace sgl_kernel::SGL_TARGET {

// Smaller pages are gathered row by row: the copy engine is slower with small boxes.
inline constexpr int kLeastBoxRows = 32;

// How the work of one call is cut into tiles of 128 packed rows. Row r of a head group's rows in a sequence is token
// r / pack, head group * pack + r % pack.
struct PrefillSchedule {
  int pack;                // query heads of a KV head that a tile holds together: a power of two
  int groups_per_kv_head;  // query heads / KV heads / pack: tiles of the same tokens that share a KV head
  int num_groups;          // query heads / pack
  int num_query_tiles;     // of the longest sequence
  // A stripe is the query tiles of one (sequence, head group, split). The order of tiles is sections of stripes, whose
  // KV stays in the L2 cache together; in a section the last query tiles come first, which have the most keys under a
  // causal mask.
  int num_stripes;
  int stripes_per_section;
  int num_tiles;    // num_stripes * num_query_tiles
  bool persistent;  // one block a multiprocessor, which walks its tiles; else a block a tile
  bool gather;      // keys one by one; else in boxes of the copy engine
};

// q, k and v as the copy engine sees them. The boxes are the launcher's to fill in.
TensorMapShape queries_shape(const AttentionParams& params, int pack);  // (head_dim, head in group, row, group, batch)
TensorMapShape keys_shape(const AttentionParams& params);               // (head_dim, row, KV head, batch or page, 1)
TensorMapShape values_shape(const AttentionParams& params);

// Step 2 for head_dim and head_dim_v up to those of the name (192: head_dim_v up to 128). With num_splits > 1 they fill
// out_accum and lse_accum, else out and lse.
Status prefill_h64(const AttentionParams& params, const PrefillSchedule& schedule, Stream stream);
Status prefill_h128(const AttentionParams& params, const PrefillSchedule& schedule, Stream stream);
Status prefill_h192(const AttentionParams& params, const PrefillSchedule& schedule, Stream stream);
Status prefill_h256(const AttentionParams& params, const PrefillSchedule& schedule, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
