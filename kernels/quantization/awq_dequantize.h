// Decodes 4-bit weights in AWQ's layout.
//   result[k, n] = (q[k, n] - z[k / group_size, n]) * scales[k / group_size, n]      rounded once, to nearest even
//   result   [K, N]               dtype of scales
//   qweight  [K, N / 8]           int32: eight 4-bit numbers q of a row in a word
//   scales   [K / group_size, N]  f16 | bf16
//   qzeros   [K / group_size, N / 8]  int32: the zero points z, in words like q
// Elements 0 … 7 of a word lie at bits 0, 16, 4, 20, 8, 24, 12, 28. The shapes say group_size: K divided by the rows of
// scales, which divides K. All are contiguous, result and scales 16-byte aligned; result overlaps no other. Empty
// tensors are a no-op. Wrong dtypes, shapes, strides or devices are InvalidArgument. Source: Lin et al. 2023 (AWQ).
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

Status awq_dequantize(TensorView result, TensorView qweight, TensorView scales, TensorView qzeros, Stream stream);

}  // namespace sgl_kernel
