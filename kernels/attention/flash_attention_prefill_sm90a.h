// The Hopper prefill kernel, as its entry sees it.
#pragma once

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"
#include "kernels/device/tma_sm90.cuh"

namespace sgl_kernel::SGL_TARGET {

// What the kernel is told about one call. Strides are in elements. "Query head" counts within a group of `pack` heads
// that a tile holds together: row r of a sequence's packed queries is token r / pack, head group * pack + r % pack.
struct PrefillArguments {
  void* out;      // [num_tokens or batch, seqlen, num_heads, head_dim_v]
  float* lse;     // [num_heads, num_tokens] or [batch, num_heads, seqlen]; null: not wanted
  const void* k;  // read by the gathering producer only
  const void* v;
  const float* sinks;         // [num_heads] or null
  const int* cu_seqlens_q;    // [batch + 1] or null: dense, sequence b starts at row b of the batch dimension
  const int* cu_seqlens_k;    // [batch + 1] or null
  const int* seqused_q;       // [batch] or null
  const int* seqused_k;       // [batch] or null
  const int* page_table;      // [batch, pages] or null
  const int* kv_batch_index;  // [batch] or null: which row of a dense cache (or of page_table) a sequence has

  int64_t out_stride_batch, out_stride_token, out_stride_head;
  int64_t lse_stride_batch, lse_stride_token, lse_stride_head;
  int64_t k_stride_batch, k_stride_token, k_stride_head;  // batch: of a page, if paged
  int64_t v_stride_batch, v_stride_token, v_stride_head;
  int64_t page_table_stride;

  int seqlen_q, seqlen_k;  // where no length per sequence says otherwise
  int head_dim, head_dim_v;
  int page_size;                  // tokens
  int box_rows;                   // tokens that one box of the copy engine holds: kTileN, or page_size if that is less
  int pack;                       // query heads of a KV head that a tile holds together; 1: one head a tile
  int groups_per_kv_head;         // tiles of the same tokens that share a KV head: query heads / KV heads / pack
  int window_left, window_right;  // keys visible on either side of the diagonal; negative: all

  float scale_log2;     // log2(e) * scale, or log2(e) * softcap
  float softcap_scale;  // scale / softcap; 0: no softcap

  // The order of tiles: sections of (batch, head group) pairs whose KV stays in the L2 cache together; in a section the
  // last query tile first, which has the most keys under a causal mask.
  int num_query_tiles;  // of the longest sequence
  int num_groups;       // query heads / pack
  int num_pairs;        // batch * num_groups
  int pairs_per_section;
  int num_tiles;  // num_pairs * num_query_tiles
};

// One call: the arguments (box_rows and num_tiles are the launcher's to fill in) and the tensors for the copy engine
// (boxes likewise).
struct PrefillCall {
  PrefillArguments args;
  TensorMapShape q;     // (head_dim, head in group, token, group, batch)
  TensorMapShape k, v;  // (head_dim, token, KV head, batch or page, 1)
  bool persistent;      // one block a multiprocessor: for tiles of equal or evenly decreasing length
};

}  // namespace sgl_kernel::SGL_TARGET
