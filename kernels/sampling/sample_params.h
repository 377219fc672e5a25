// What the targets of the sampling operators take: checked, and reduced to pointers.
#pragma once

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"
#include "kernels/sampling/arrays.h"
#include "kernels/sampling/draw.h"

namespace sgl_kernel {

struct SampleParams {
  const char* operator_name;
  const float* probs;
  int64_t row_stride;  // in elements
  int64_t num_rows;
  int64_t vocab;
  int32_t* output;
  int64_t output_stride;
  int64_t num_samples;
  const int64_t* seed;  // (seed, offset)
  int64_t seed_stride;
  IntArray indices, top_k_arr;
  FloatArray top_p_arr, min_p_arr;
  int64_t top_k;
  float top_p, min_p;
  bool top_k_first;

  SGL_HOST_DEVICE int64_t row(int64_t sample) const { return indices.data ? indices[sample] : sample; }
  SGL_HOST_DEVICE Seed load_seed() const {
    return {static_cast<uint64_t>(seed[0]), static_cast<uint64_t>(seed[seed_stride])};
  }
  SGL_HOST_DEVICE Filters filters(int64_t sample) const {
    Filters filters;
    const int64_t k = top_k_arr.data ? top_k_arr[sample] : top_k;
    filters.top_k = k > 0 && k < vocab ? static_cast<uint32_t>(k) : 0;
    const float p = top_p_arr.data ? top_p_arr[sample] : top_p;
    filters.top_p = p < 1.0f ? fmaxf(p, 0.0f) : 1.0f;  // NaN is off
    filters.top_k_first = top_k_first;
    return filters;
  }
  // The lowest probability that min-p keeps in a row of that peak; 0 is all.
  SGL_HOST_DEVICE float lowest_kept(int64_t sample, float peak) const {
    const float p = min_p_arr.data ? min_p_arr[sample] : min_p;
    return p > 0.0f ? fminf(p, 1.0f) * peak : 0.0f;
  }
};

Status sample_tokens(const SampleParams& params, Stream stream);

}  // namespace sgl_kernel
