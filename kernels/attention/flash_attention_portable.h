// The portable CUDA steps of flash_attention. An entry for one SM target may take over a step and leave the rest to
// these; flash_attention.cu is the entry of the targets that take them all.
#pragma once

#include "kernels/attention/flash_attention_params.h"

namespace sgl_kernel::SGL_TARGET {

// Step 1: appends k_new and v_new to the cache, and fills rotated_q if there is a rotary embedding.
Status append_new_keys(const AttentionParams& params, Stream stream);

// Step 2. Rows of a tile are the queries of all heads that share a KV head, and the keys are split num_splits ways.
// With num_partials > 1 they fill out_accum and lse_accum, else out and lse. q is with_rotated_queries().
Status attend_query_tiles(const AttentionParams& params, Stream stream);      // takes narrow values, merges no splits
Status attend_query_tiles_fp8(const AttentionParams& params, Stream stream);  // its part for fp8
Status attend_grouped_heads(const AttentionParams& params, Stream stream);    // takes few_packed_rows(), narrow values
Status attend_grouped_heads_fp8(const AttentionParams& params, Stream stream);
Status attend_wide_values(const AttentionParams& params, Stream stream);  // takes all calls but fp8, merges no splits

// Step 3: out and lse from out_accum and lse_accum, with the sinks. Sums over the splits in order.
Status combine_splits(const AttentionParams& params, Stream stream);

// All the steps.
Status flash_attention_portable(const AttentionParams& params, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
