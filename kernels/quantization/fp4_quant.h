// Quantization to NVFP4: 4-bit floats e2m1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives), with an e4m3 scale for
// each 16 neighbours of a row, and a global scale that the caller knows.
//   amax   = max |x| over the 16
//   scale  = e4m3(global * (amax * (1 / 6)))       rounded to nearest even, at most 448
//   value  = e2m1(x * (1 / (scale * (1 / global))))    likewise, at most 6 in magnitude; 0 where scale is 0
// so that x is about value * scale / global, and global = 448 * 6 / max |x| uses the whole range.
//   input         [M, K]      f16 | bf16; K is a multiple of 16, M at most 2^30
//   output        [M, K / 2]  uint8: two values a byte, the first in the low bits
//   output_scale  int32       e4m3 bytes, four to a word, in the order that tensor cores read: tiles of 128 rows by 4
//                             scales, 512 bytes each, row after row of tiles; scale (m, k) of a tile is byte
//                             m % 32 * 16 + m / 32 * 4 + k. Scales behind K / 16 up to a multiple of 4 are 0.
//
// Values keep their sign. A NaN makes its scale NaN (0x7f), and its 16 values 0; an infinity counts as the largest
// number. Tensors have a dense last dimension; input, and its rows, start at multiples of 16 bytes, output's of 8;
// output_scale is contiguous. Outputs overlap neither each other nor an input. An empty input is a no-op. Wrong dtypes,
// shapes, strides or devices are InvalidArgument. Sources: OCP Microscaling Formats 1.0 (E2M1); PTX ISA, tcgen05.mma
// scale factor layouts.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

//   output_scale  [ceil(M / 128) * 128, ceil(K / 64)]; the scales of rows behind M are 0
//   input_scale   f32, one element: global
// Nothing is written to input and input_scale, whatever the schema says.
Status scaled_fp4_quant(TensorView output, TensorView input, TensorView output_scale, TensorView input_scale,
                        Stream stream);

// Rows sorted by expert, each expert's scales in tiles of their own.
//   output_scale                    [R, ceil(K / 64)]
//   input_global_scale              [E] f32: global of each expert
//   input_offset_by_experts         [E + 1] int32: expert e has rows offset[e] … offset[e + 1] - 1, ascending
//   output_scale_offset_by_experts  [E + 1] int32: its scales begin at row offset[e] of output_scale, a
//                                   multiple of 128, and reach over whole tiles, behind those of the experts before
// Rows of no expert, and scales of no row, are not written. Other offsets are InvalidArgument; on a GPU only if
// checks_values() (SGL_KERNEL_CHECK=1), otherwise nothing is written for those that lead out of a tensor.
Status scaled_fp4_experts_quant(TensorView output, TensorView output_scale, TensorView input,
                                TensorView input_global_scale, TensorView input_offset_by_experts,
                                TensorView output_scale_offset_by_experts, Stream stream);

// Experts of equally many rows, of which the first mask[e] are quantized; nothing is written for the others.
//   input, output       [E * rows, …]
//   output_scale        [E * ceil(rows / 128) * 128, ceil(K / 64)]
//   input_global_scale  [E] f32: global of each expert
//   mask                [E] int32
//   use_silu_and_mul    x[k] = silu(input[k]) * input[K + k] in f32, rounded once to input's dtype; input is [E * rows,
//                       2 K]. Else x = input.
Status silu_and_mul_scaled_fp4_experts_quant(TensorView output, TensorView output_scale, TensorView input,
                                             TensorView input_global_scale, TensorView mask, bool use_silu_and_mul,
                                             Stream stream);

}  // namespace sgl_kernel
