// Products of int8 rows with QServe's 4-bit weights (W4A8).
//
//   per channel:  out[i, j] = ascales[i] * wscales[j] * sum_l in[i, l] * q[j, l] - a_ssums[i] * w_szs[j]
//   per group:    out[i, j] = ascales[i] * wscales[j] * sum_l in[i, l] * (q[j, l] * scale[j, g] + zero[j, g]),
//                 g = l / 128
//
//   _in_feats   [M, K]      int8; rows may be strided, the last dimension is dense
//   _kernel     [N, K / 2]  int8: the weights q, 0 to 15, in tiles of 32 x 32; N and K are multiples of 32
//   _wscales    f16, N numbers
//   _ascales    f16, M numbers
//   _out_feats  [M, N]      f16; rows may be strided, the last dimension is dense
//
// A tile of _kernel is 512 bytes, and a row of tiles (32 rows of q) follows another. With n and k counted within the
// tile, q[n, k] is in byte n % 8 * 64 + k % 16 / 4 * 16 + k / 16 * 8 + n % 16 / 8 * 4 + k % 4; in its low bits for
// n < 16, else in its high bits. All tensors but _in_feats and _out_feats are contiguous; _kernel, _zeros and
// _scales_i8 start at multiples of 16 bytes.
//
// Sums are exact in int32 (K up to 131071, an error beyond), the rest is f32, rounded once. M == 0 or N == 0 is a
// no-op; K == 0 gives what is left of the formula. An element's bits do not depend on other rows. A result beyond f16's
// range is infinite.
//
// Errors: InvalidArgument for other shapes, dtypes, strides, devices, and for an output that overlaps an input. Source
// of the layout: QServe (Lin et al. 2024, arXiv:2405.04532), section 5, and its packing code.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

//   _w_szs    f16, N numbers: scale times zero point of each channel
//   _a_ssums  f16, M numbers: the sum of each row of the activations, as they were before they became int8
Status qserve_w4a8_per_chn_gemm(TensorView _in_feats, TensorView _kernel, TensorView _wscales, TensorView _ascales,
                                TensorView _w_szs, TensorView _a_ssums, TensorView _out_feats, Stream stream);

// K is a multiple of 128. q * scale + zero is taken modulo 256, as an int8.
//   _zeros, _scales_i8  [K / 128, N] int8; of 32 rows of q, row n is at n % 8 * 4 + n / 8. A zero is minus the zero
//                       point times the scale.
Status qserve_w4a8_per_group_gemm(TensorView _in_feats, TensorView _kernel, TensorView _zeros, TensorView _scales_i8,
                                  TensorView _wscales, TensorView _ascales, TensorView _out_feats, Stream stream);

}  // namespace sgl_kernel
