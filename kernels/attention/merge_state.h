// Merges two attention states: the results of one query over two disjoint sets of keys.
//   m = max(s_a, s_b);  w_a = B^(s_a - m), w_b = B^(s_b - m)
//   v_merged = (w_a v_a + w_b v_b) / (w_a + w_b)        s_merged = m + log_B(w_a + w_b)        in f32, rounded once
//   v_a, v_b, v_merged  [T, H, D]   f32 | f16 | bf16, one dtype; any strides of T and H
//   s_a, s_b, s_merged  [T, H]      f32, any strides: the log-sum-exp of the attention scores, to the base B
// A state whose s is -inf is empty (a key set without keys); so is one whose s is +inf, which some kernels write for
// it. What its v holds does not matter, NaN included. Two empty states merge to v_merged = 0, s_merged = -inf. v_merged
// may be v_a or v_b; otherwise outputs overlap nothing. No tokens or no heads: a no-op. Wrong dtypes, shapes, strides
// or devices are InvalidArgument. Source: Ye et al. 2025 (FlashInfer, section 2.2).
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// B = 2: s is what FlashInfer's kernels return.
Status merge_state(TensorView v_a, TensorView s_a, TensorView v_b, TensorView s_b, TensorView v_merged,
                   TensorView s_merged, Stream stream);

// B = e: s is what FlashAttention's kernels, and those of this library, return.
Status merge_state_v2(TensorView v_a, TensorView s_a, TensorView v_b, TensorView s_b, TensorView v_merged,
                      TensorView s_merged, Stream stream);

}  // namespace sgl_kernel
