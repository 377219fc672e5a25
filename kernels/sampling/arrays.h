// Vectors of per-sample and per-row arguments.
#pragma once

#include <cstdint>

#include "kernels/base/tensor_view.h"
#include "kernels/sampling/mass.h"

namespace sgl_kernel {

inline constexpr int64_t kMaxRows = INT32_MAX / 8;   // of up to 8 blocks each, whose number is an int
inline constexpr int64_t kMaxVocab = INT32_MAX - 3;  // rounded up to vectors of 4, still an int

// i32 or i64, by what a caller has.
struct IntArray {
  const void* data = nullptr;
  int64_t stride = 0;
  bool is_i64 = false;

  SGL_HOST_DEVICE int64_t operator[](int64_t i) const {
    return is_i64 ? static_cast<const int64_t*>(data)[i * stride] : static_cast<const int32_t*>(data)[i * stride];
  }
};

struct FloatArray {
  const float* data = nullptr;
  int64_t stride = 0;

  SGL_HOST_DEVICE float operator[](int64_t i) const { return data[i * stride]; }
};

// Of tensors that have been checked: one dimension, and the dtype.
inline IntArray int_array(const TensorView& tensor) {
  return {tensor.data(), tensor.stride(0), tensor.dtype() == DType::kI64};
}
inline FloatArray float_array(const TensorView& tensor) { return {tensor.data<float>(), tensor.stride(0)}; }

}  // namespace sgl_kernel
