// A group of 32 products: quantized activations, and weights of any format.
#pragma once

#include "kernels/quantization/ggml_activations.cuh"
#include "kernels/quantization/ggml_decode.cuh"

namespace sgl_kernel::SGL_TARGET {

// Where half 0 or 1 of a group's bytes is in shared memory. They trade places in every other four groups, so that 8
// lanes that read the same half of 8 groups at once touch all 32 banks.
__device__ __forceinline__ int half_at(int group, int half) { return (half ^ (group >> 2 & 1)) * (kGroupSize / 2); }

struct ActivationGroup {
  uint32_t quants[8];
  ActivationScale scale;
};

// `half0` and `half1` are where its halves are.
__device__ __forceinline__ ActivationGroup load_group(const uint8_t* quants, int half0, int half1,
                                                      const ActivationScale& scale) {
  const uint4 x0 = *reinterpret_cast<const uint4*>(quants + half0);
  const uint4 x1 = *reinterpret_cast<const uint4*>(quants + half1);
  return {{x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w}, scale};
}

template <class Format>
__device__ __forceinline__ void add_group(const WeightGroup& weights, const ActivationGroup& x, float& sum) {
  int dots[2] = {0, 0};
#pragma unroll
  for (int w = 0; w < 8; ++w) {
    int& dot = dots[Format::kScales == 2 ? w / 4 : 0];
    dot = __dp4a(static_cast<int>(weights.quants[w]), static_cast<int>(x.quants[w]), dot);
  }
  const float value = scaled_dot<Format>(weights.scale, weights.offset, static_cast<float>(dots[0]),
                                         static_cast<float>(dots[1]), x.scale);
  sum = __fmaf_rn(x.scale.d, value, sum);
}

}  // namespace sgl_kernel::SGL_TARGET
