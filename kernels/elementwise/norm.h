// Root-mean-square normalization, with and without a fused residual add, in Llama's and in Gemma's form.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// Normalizes each row by its root mean square.
//   output[t, d] = input[t, d] / sqrt(mean_d(input[t, :]^2) + eps) * weight[d]      sums and products in f32
//   output, input  [..., D]  f32 | f16 | bf16; rows may be strided, the last dimension is dense
//   weight         [D]       dtype of input
//   eps            at least 0
//   enable_pdl     launches with programmatic dependent launch (sm_90 and later; ignored elsewhere)
// output may be input. No rows is a no-op. Source: Zhang & Sennrich 2019.
Status rmsnorm(TensorView output, TensorView input, TensorView weight, double eps, bool enable_pdl, Stream stream);

// Adds, then normalizes, both in place; the same bits as an addition followed by rmsnorm.
//   residual[t, d] = input[t, d] + residual[t, d]                                   rounded to the dtype
//   input[t, d]    = residual[t, d] / sqrt(mean_d(residual[t, :]^2) + eps) * weight[d]
//   input, residual  [..., D]  f32 | f16 | bf16, apart from each other in memory; weight [D]
Status fused_add_rmsnorm(TensorView input, TensorView residual, TensorView weight, double eps, bool enable_pdl,
                         Stream stream);

// rmsnorm with 1 + weight[d] in place of weight[d], added in f32: Gemma's checkpoints store the difference from 1.
Status gemma_rmsnorm(TensorView output, TensorView input, TensorView weight, double eps, bool enable_pdl,
                     Stream stream);

// fused_add_rmsnorm with 1 + weight[d] in place of weight[d].
Status gemma_fused_add_rmsnorm(TensorView input, TensorView residual, TensorView weight, double eps, bool enable_pdl,
                               Stream stream);

}  // namespace sgl_kernel
