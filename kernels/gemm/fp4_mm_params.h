// What cutlass_scaled_fp4_mm hands to the targets, checked.
#pragma once

#include <cstdint>

#include "kernels/base/fp4_layout.h"
#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// A matrix of e2m1 values with its scales.
struct Fp4Matrix {
  const uint8_t* values;  // [rows, k / 2], dense rows
  int64_t stride;         // between rows, in bytes
  const uint8_t* scales;  // [ceil(rows / 128), padded_blocks / 4] tiles of kScaleTileBytes
};

// Up to so many tokens, a GPU needs no workspace: on Hopper the kernel for few takes them.
inline constexpr int64_t kFp4FewTokens = 32;

// Numbers of a row in the workspace, where a's values are f16: whole tiles of scales.
constexpr int64_t fp4_wide_columns(int64_t k) {
  constexpr int64_t kTile = kScaleTileColumns * kFp4Block;
  return (k + kTile - 1) / kTile * kTile;
}

// out[i, j] = alpha * sum_l a[i, l] * b[j, l]. Only K may be 0.
struct Fp4MmParams {
  const char* operator_name;
  int64_t m, n, k;        // k is a multiple of kFp4Block
  int64_t padded_blocks;  // scales of a row
  Fp4Matrix a, b;
  void* workspace;  // cutlass_scaled_fp4_mm_workspace_size() bytes
  void* output;     // [m, n], dense rows
  int64_t output_stride;
  DType output_dtype;  // kF16 or kBF16
  const float* alpha;  // [1]
};

Status fp4_mm(const Fp4MmParams& params, Stream stream);

}  // namespace sgl_kernel
