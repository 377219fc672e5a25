// What the public functions of skinny_mm.h hand to the targets, checked.
#pragma once

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// output[i, j] = sum_l a[i, l] * b[j, l]. Only K may be 0.
struct SkinnyMmParams {
  const char* operator_name;
  int64_t m, n, k;
  const void* a;  // [m, k] bf16, dense rows
  int64_t a_stride;
  const void* b;  // [n, k] bf16, dense rows
  int64_t b_stride;
  void* output;  // [m, n], dense rows
  int64_t output_stride;
  DType output_dtype;  // kBF16 or kF32
};

Status skinny_mm(const SkinnyMmParams& params, Stream stream);

}  // namespace sgl_kernel
