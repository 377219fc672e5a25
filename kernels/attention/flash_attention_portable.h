// The portable CUDA steps of flash_attention. An entry for one SM target may take over a step and leave the rest to
// these; flash_attention.cu is the entry of the targets that take them all.
#pragma once

#include "kernels/attention/flash_attention_params.h"

namespace sgl_kernel::SGL_TARGET {

// Step 1: appends k_new and v_new to the cache, and fills rotated_q if there is a rotary embedding.
Status append_new_keys(const AttentionParams& params, Stream stream);

// Step 2 for many queries a sequence: tiles of query rows of one head. It does not split: num_splits must be 1.
Status attend_query_tiles(const AttentionParams& params, Stream stream);

// Step 2 for few queries: a tile holds the query heads that share a KV head; the keys are split num_splits ways. With
// num_splits > 1 it fills out_accum and lse_accum, else out and lse.
Status attend_grouped_heads(const AttentionParams& params, Stream stream);

// Step 3: out and lse from out_accum and lse_accum, with the sinks. Sums over the splits in order.
Status combine_splits(const AttentionParams& params, Stream stream);

// All the steps.
Status flash_attention_portable(const AttentionParams& params, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
