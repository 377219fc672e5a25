// What the targets of the threshold operators take: checked, and reduced to pointers.
#pragma once

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"
#include "kernels/sampling/arrays.h"

namespace sgl_kernel {

enum class Threshold : uint8_t { kTopKRenorm, kTopPRenorm, kTopKMask };

struct ThresholdParams {
  const char* operator_name;
  Threshold threshold;
  const float* input;
  int64_t input_stride;  // between rows, in elements
  float* output;
  int64_t output_stride;
  int64_t num_rows;
  int64_t vocab;
  IntArray top_k_arr;
  FloatArray top_p_arr;
  int64_t top_k;
  float top_p;

  // 0 is off.
  SGL_HOST_DEVICE uint32_t top_k_of(int64_t row) const {
    const int64_t k = top_k_arr.data ? top_k_arr[row] : top_k;
    return k > 0 && k < vocab ? static_cast<uint32_t>(k) : 0;
  }
  // 1 is off.
  SGL_HOST_DEVICE float top_p_of(int64_t row) const {
    const float p = top_p_arr.data ? top_p_arr[row] : top_p;
    return p < 1.0f ? fmaxf(p, 0.0f) : 1.0f;
  }
};

Status apply_threshold(const ThresholdParams& params, Stream stream);

}  // namespace sgl_kernel
