// What the targets of the GPTQ operators take.
#pragma once

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"
#include "kernels/gemm/mixed_mm_splits.h"

namespace sgl_kernel {

struct GptqShuffleParams {
  uint32_t* weight;     // [k / numbers in a unit * words in a unit, n]
  uint32_t* workspace;  // of the same shape; null without perm
  const int32_t* perm;  // [k] or null
  int64_t k, n;
  int num_bits;
};

struct GptqGemmParams {
  void* result;  // f16 [m, n]
  const void* a;
  const uint32_t* weight;
  const uint32_t* zeros;
  const void* scales;
  const int32_t* columns;  // [k] of a, or null
  const int32_t* groups;   // [k], or null
  int64_t m, n, k, num_groups;
  int num_bits;
  bool shuffled;
  // Of a GPU's workspace.
  void* gathered;   // f16 [m, k]: a in the order of `columns`; null without
  float* partials;  // f32 [num_splits, m, n]; null with one split
  int num_splits;
};

Status shuffle_gptq(const GptqShuffleParams& params, Stream stream);
Status multiply_gptq(const GptqGemmParams& params, Stream stream);

}  // namespace sgl_kernel
