// What the public functions of scaled_mm.h hand to the targets, checked.
#pragma once

#include <cstdint>

#include "kernels/base/host_device.h"
#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

inline constexpr int kScaleBlock = 128;  // elements along K and N that share a scale of fp8_blockwise_scaled_mm

// A scale for each row or column, or with step = 0 one for all.
struct ScaleVector {
  const float* data;
  int64_t step;

  SGL_HOST_DEVICE float at(int64_t i) const { return data[i * step]; }
};

// Scales of blocks of 128: of A [m, k_blocks], of B [k_blocks, n_blocks].
struct ScaleMatrix {
  const float* data;
  int64_t row_stride, column_stride;

  SGL_HOST_DEVICE float at(int64_t row, int64_t column) const {
    return data[row * row_stride + column * column_stride];
  }
};

// output[i, j] = scales * sum_l a[i, l] * b[l, j] + bias[j], once or for each of some batches. Only K may be 0.
struct ScaledMmParams {
  const char* operator_name;
  int64_t m, n, k;
  DType a_dtype, b_dtype;  // kI8 both, or kF8E4M3 or kF8E5M2 each
  const void* a;           // [m, k], dense rows
  int64_t a_stride;
  const void* b;  // [n, k], dense rows: the operand [k, n] is column-major
  int64_t b_stride;
  void* output;  // [m, n], dense rows
  int64_t output_stride;
  DType output_dtype;          // kF16 or kBF16
  const void* bias = nullptr;  // [n] of output_dtype, or null
  // Batches share scales and bias, and are not blockwise. From one to the next, in elements:
  int64_t batches = 1;
  int64_t a_batch_stride = 0, b_batch_stride = 0, output_batch_stride = 0;
  // Either those of rows and columns hold or, if blockwise, those of blocks.
  bool blockwise = false;
  ScaleVector row_scales = {}, column_scales = {};
  ScaleMatrix a_block_scales = {}, b_block_scales = {};
};

Status scaled_mm(const ScaledMmParams& params, Stream stream);

}  // namespace sgl_kernel
