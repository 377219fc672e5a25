// What the targets of the gated activations take: checked, and reduced to rows.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

enum class Activation : uint8_t { kSilu, kGeluTanh, kGelu };

struct ActivationParams {
  const char* operator_name;
  Activation activation;
  DType dtype;
  void* out;
  const void* input;
  int64_t num_rows;
  int64_t dim;           // of a row of out; half of a row of input
  int64_t out_stride;    // between rows, in elements
  int64_t input_stride;  // "
};

// act(x) for kSilu and kGeluTanh is x / (1 + exp(-g(x))): g(x) = x, or, because (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)),
// g(x) = x * (kGeluTanhLinear + kGeluTanhCubic * x^2).
inline constexpr float kGeluTanhLinear = 1.5957691216057308f;  // 2 sqrt(2 / pi)
inline constexpr float kGeluTanhCubic = 0.07135481627260025f;  // 0.044715 times that
inline constexpr float kSqrtHalf = 0.7071067811865476f;

Status activation_and_mul(const ActivationParams& params, Stream stream);

}  // namespace sgl_kernel
