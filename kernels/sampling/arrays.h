// Vectors of per-sample and per-row arguments.
#pragma once

#include <cstdint>

#include "kernels/sampling/mass.h"

namespace sgl_kernel {

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

}  // namespace sgl_kernel
