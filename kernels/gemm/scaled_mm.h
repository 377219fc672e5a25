// Products of 8-bit matrices with scales: dequantized A times dequantized B, in one pass over the operands.
//
//   output[i, j] = s(i, j) * sum_l mat_a[i, l] * mat_b[l, j] + bias[j]          s(i, j) = scales_a[i] * scales_b[j]
//   output[i, j] = sum_g scales_a[i, g] * scales_b[g, j / 128] * sum_{l in block g} mat_a[i, l] * mat_b[l, j]
//   (blockwise)
//
//   output    [M, N]  f16 | bf16; rows may be strided, the last dimension is dense
//   mat_a     [M, K]  rows may be strided, the last dimension is dense
//   mat_b     [K, N]  dtype of mat_a, column-major: the first dimension is dense, columns may be strided
//   scales_a  f32, M numbers (one for each row) or one for all; dense
//   scales_b  f32, N numbers (one for each column) or one for all; dense
//   bias      [N], dtype of output
//
// Sizes and strides may be any. M == 0 or N == 0 is a no-op; K == 0 gives the bias, or zeros. A result beyond the
// output's range is infinite. An element does not depend on the other rows of A; its bits may depend on M, which
// decides the order of additions, and are the same in every run.
//
// bmm_fp8 has other names and a further dimension for the same.
//
// Errors: InvalidArgument for other shapes, dtypes, strides, devices, and for an output that overlaps an input.
#pragma once

#include <optional>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// mat_a and mat_b e4m3. NaN in a row or a column makes its products NaN.
//
// Sums are f32 but on Hopper, whose tensor cores add 32 products and the sum so far at a time and cut off what lies
// below about 2^-13 of the largest of them, then the same of the new sum (cuBLASLt's fast accumulation is the same). In
// these units of the largest partial sum, a sum over L loses up to L / 32, and L products up to one each, whose signs
// are mixed: some sqrt(L / 3). L is 4096 at most: such stretches of K are then added in f32.
Status fp8_scaled_mm(TensorView output, TensorView mat_a, TensorView mat_b, TensorView scales_a, TensorView scales_b,
                     const std::optional<TensorView>& bias, Stream stream);

// mat_a and mat_b e4m3; one scale for 128 elements along K of a row of A, and for 128 x 128 elements of B:
//   scales_a  [M, ceil(K / 128)]                 f32, any strides (column-major in the public package)
//   scales_b  [ceil(K / 128), ceil(N / 128)]     f32, any strides
// Blocks are summed in f32; within one, the sum is as in fp8_scaled_mm. On a GPU the product of a block's two scales is
// an f32, too: beyond its range it is 0 or infinite.
Status fp8_blockwise_scaled_mm(TensorView output, TensorView mat_a, TensorView mat_b, TensorView scales_a,
                               TensorView scales_b, Stream stream);

// mat_a and mat_b int8. Sums are exact in int32 (K up to 131071, an error beyond), then rounded to f32.
Status int8_scaled_mm(TensorView output, TensorView mat_a, TensorView mat_b, TensorView scales_a, TensorView scales_b,
                      const std::optional<TensorView>& bias, Stream stream);

// A product for each batch, with one scale for each operand:
//   D[batch, i, j] = A_scale * B_scale * sum_l A[batch, i, l] * B[batch, l, j]
//   A        [batches, M, K]  e4m3 | e5m2; the last dimension is dense
//   B        [batches, K, N]  e4m3 | e5m2, column-major: the middle dimension is dense
//   D        [batches, M, N]  f16 | bf16; the last dimension is dense
//   A_scale, B_scale          f32, one element each
// Other strides are any; the number of batches, as M, may decide the order of additions. On Hopper, sums of e4m3
// matrices are as in fp8_scaled_mm. workspace_buffer and cublas_handle are upstream's, and not looked at.
Status bmm_fp8(TensorView A, TensorView B, TensorView D, TensorView A_scale, TensorView B_scale,
               TensorView workspace_buffer, int64_t cublas_handle, Stream stream);

}  // namespace sgl_kernel
