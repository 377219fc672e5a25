// Quantization to 8 bits with one scale for each group of neighbours within a token.
//   amax        = max(eps, |x|) over the group
//   scale       = amax / fp8_max, or with scale_ue8m0 the least power of two that is not below it
//   output_q[i] = cast(x[i] * (1 / scale))         1 / scale = fp8_max / amax, or the power of two
//   x = input; with fuse_silu_and_mul x[i] = silu(input[i]) * input[H + i] in f32, rounded once to input's dtype
// cast() rounds to nearest even and saturates: at ±448, or at -128 and 127.
//   input     [T, H], [E, T, H]; with fuse_silu_and_mul 2H in place of H       f32 | f16 | bf16
//   output_q  [T, H], [E, T, H]      float8_e4m3fn | int8
//   output_s  the scales, of input's rank, any strides without overlap (row-major, column-major, padded for TMA):
//             f32   [..., T, H / group_size]
//             int32 [..., T, ceil(H / group_size / 4)], only with scale_ue8m0: the scales' exponents (UE8M0: the
//                   power of two is 2^(byte - 127)), four groups to a word, the first in the lowest byte; bytes
//                   behind the last group are 0
//   masked_m  [E] int32, only with a three-dimensional input: of expert e the first masked_m[e] tokens are
//             computed, and what belongs to the others is not written
// group_size is 16, 32, 64 or 128, and divides H. eps is 1e-30 to 1e30. fp8_min and fp8_max are the limits of
// output_q's dtype: -448 and 448, -128 and 127. input and output_q have a dense last dimension, and start, and step, by
// multiples of 16 bytes.
//
// A group of zeros has the scale of eps, and zeros. A NaN makes its group's scale NaN, its e4m3
// values 0x7f (NaN) and its int8 values 0; an infinity makes the scale infinite, infinities 0x7f or 0, and the others
// 0. UE8M0 has one byte, 255, for both, and all of the group's values are then as for NaN. A group's result depends on
// nothing else. Outputs overlap neither each other nor an input. An empty input is a no-op. Wrong dtypes, shapes,
// strides, sizes or devices are InvalidArgument. Sources: DeepSeek-V3 2024 (fine-grained quantization), OCP
// Microscaling Formats 1.0 (E8M0).
//
// It differs from sgl-kernel 0.3.21, which cuts int8 towards zero.
#pragma once

#include <optional>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// Neither fused nor masked.
Status sgl_per_token_group_quant_8bit(TensorView input, TensorView output_q, TensorView output_s, int64_t group_size,
                                      double eps, double fp8_min, double fp8_max, bool scale_ue8m0, Stream stream);

// With all that the head of this file says.
Status sgl_per_token_group_quant_8bit_v2(TensorView input, TensorView output_q, TensorView output_s, int64_t group_size,
                                         double eps, double fp8_min, double fp8_max, bool scale_ue8m0,
                                         bool fuse_silu_and_mul, const std::optional<TensorView>& masked_m,
                                         Stream stream);

}  // namespace sgl_kernel
