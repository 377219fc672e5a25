// Quantization to float8 e4m3fn with one scale for the tensor, or one for each token.
//   output_q[i] = e4m3(input[i] * (1 / scale))         rounded to nearest even, saturated at ±448
//   input     f32 | f16 | bf16
//   output_q  float8_e4m3fn, of input's shape
//   output_s  f32: the scale, so that input is about output_q * output_s
// A scale that is found is amax / 448, amax being the largest |input| that it covers; at least 2^-126, the smallest
// normal float, unless amax is 0: then the scale is 0, and output_q too. A NaN makes the scale it counts for NaN and
// all that is quantized with it 0x7f (NaN); an infinity makes the scale infinite, infinities 0x7f, and the others 0. So
// whatever is multiplied by the scale shows that the input was not finite.
// output_q and output_s overlap neither each other nor input. An empty input is a no-op. Wrong dtypes, shapes, strides
// or devices are InvalidArgument. Source: Micikevicius et al. 2022 (FP8 formats for deep learning).
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// One scale for the tensor. is_static: output_s is given, and read; 0 gives zeros. Else it is found, and written.
//   workspace           uint8, contiguous, at least sgl_per_tensor_quant_fp8_workspace_size() bytes, 4-byte
//                       aligned; not read before it is written. Empty will do if is_static.
//   input, output_q     any shape, contiguous
//   output_s            one element
Status sgl_per_tensor_quant_fp8(TensorView workspace, TensorView input, TensorView output_q, TensorView output_s,
                                bool is_static, Stream stream);

// In bytes, for a tensor of any size.
int64_t sgl_per_tensor_quant_fp8_workspace_size();

// One scale for each token, which does not depend on the other tokens.
//   input, output_q     [T, D], the last dimension dense, rows may be strided. 16-byte aligned rows with D a
//                       multiple of 16 are the fastest.
//   output_s            [T] or [T, 1], contiguous
Status sgl_per_token_quant_fp8(TensorView input, TensorView output_q, TensorView output_s, Stream stream);

}  // namespace sgl_kernel
