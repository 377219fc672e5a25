// Gated activations of a fused gate-and-up projection.
//   out[..., i] = act(input[..., i]) * input[..., d + i]     for i < d, in f32, rounded once
//   out    [..., d]   f32 | f16 | bf16
//   input  [..., 2d]  dtype of out; the gate is the first half
// The last dimension is dense; the leading ones of each tensor must be describable by one stride (strided rows are).
// Any d serves; 16-byte aligned rows with d a multiple of 16 bytes are the fastest. out and input do not overlap. An
// empty tensor is a no-op. Wrong dtypes, shapes, strides or devices are InvalidArgument. Source: Shazeer 2020 (GLU
// variants).
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// act(x) = x / (1 + exp(-x))
Status silu_and_mul(TensorView out, TensorView input, Stream stream);

// act(x) = x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2
Status gelu_tanh_and_mul(TensorView out, TensorView input, Stream stream);

// act(x) = x * (1 + erf(x / sqrt(2))) / 2
Status gelu_and_mul(TensorView out, TensorView input, Stream stream);

}  // namespace sgl_kernel
