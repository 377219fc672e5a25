// The activations in 8 bits ("a8"), as ggml.h defines them, and as the two products read them.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/base/tensor_view.h"
#include "kernels/device/vec.cuh"
#include "kernels/quantization/ggml_decode.cuh"

namespace sgl_kernel::SGL_TARGET {

// X [num_tokens, groups * 32]
struct Activations {
  const void* data;
  DType dtype;         // f32 | f16 | bf16
  int64_t row_stride;  // elements
  bool vectors;        // the address and the stride are multiples of 16 bytes
};

inline Activations activations_of(const TensorView& X) {
  const int64_t row_bytes = X.stride(0) * size_of(X.dtype());
  const bool one_row = X.size(0) == 1;
  return {X.data(), X.dtype(), X.stride(0),
          reinterpret_cast<uintptr_t>(X.data()) % 16 == 0 && (one_row || row_bytes % 16 == 0)};
}

// What belongs to 32 quantized activations besides their bytes.
struct ActivationScale {
  float d;
  __half2 sums;  // of the first and the last 16 quants: exact, at most 16 * 127
};
static_assert(sizeof(ActivationScale) == 8);

template <class T>
__device__ __forceinline__ void load_eight(const void* row, int64_t index, bool vectors, float (&x)[8]) {
  const T* source = static_cast<const T*>(row) + index;
  if (vectors) {
    constexpr int kSize = kVecSize<T>;
#pragma unroll
    for (int i = 0; i < 8; i += kSize) {
      const auto vec = Vec<T, kSize>::load(source + i);
#pragma unroll
      for (int j = 0; j < kSize; ++j) x[i + j] = to_float(vec[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = to_float(source[i]);
  }
}

// Elements index .. index + 7 of a row of X.
__device__ __forceinline__ void load_eight(const Activations& X, int64_t token, int64_t index, float (&x)[8]) {
  const int64_t first = token * X.row_stride + index;
  if (X.dtype == DType::kF16) {
    load_eight<__half>(X.data, first, X.vectors, x);
  } else if (X.dtype == DType::kBF16) {
    load_eight<__nv_bfloat16>(X.data, first, X.vectors, x);
  } else {
    load_eight<float>(X.data, first, X.vectors, x);
  }
}

// Quantizes the 32 elements that four neighbouring lanes hold, 8 each: a lane gets the bytes of its own, and every lane
// the scale. The whole warp calls it.
__device__ __forceinline__ uint2 quantize_group(const float (&x)[8], ActivationScale& scale) {
  // The largest magnitude by its bits, which order as the numbers do, with infinity and NaN on top.
  uint32_t amax_bits = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) amax_bits = max(amax_bits, __float_as_uint(x[i]) & 0x7fffffff);
  amax_bits = max(amax_bits, __shfl_xor_sync(0xffffffff, amax_bits, 1));
  amax_bits = max(amax_bits, __shfl_xor_sync(0xffffffff, amax_bits, 2));
  constexpr uint32_t kInfinity = 0x7f800000, kSmallest = (127 - 100) << 23;  // 2^-100
  const bool finite = amax_bits < kInfinity, ordinary = finite && amax_bits >= kSmallest;
  const float amax = __uint_as_float(amax_bits);
  // amax / 127, rounded: a quotient by the rounded reciprocal and one correction are exact for this divisor (tried for
  // every mantissa), and much cheaper than a division.
  const float quotient = __fmul_rn(amax, 1.0f / 127.0f);
  const float d = __fmaf_rn(__fmaf_rn(-127.0f, quotient, amax), 1.0f / 127.0f, quotient);
  scale.d = ordinary ? d : finite ? 0.0f : __uint_as_float(0x7fc00000);
  const float inverse = ordinary ? __fdiv_rn(127.0f, amax) : 0.0f;

  uint32_t words[2] = {0, 0};
  int sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int quant = ordinary ? __float2int_rn(__fmul_rn(x[i], inverse)) : 0;
    words[i / 4] |= (static_cast<uint32_t>(quant) & 0xff) << (8 * (i % 4));
    sum += quant;
  }
  sum += __shfl_xor_sync(0xffffffff, sum, 1);
  const int other = __shfl_xor_sync(0xffffffff, sum, 2);
  const bool first_half = (threadIdx.x & 2) == 0;
  scale.sums = first_half ? __halves2half2(__int2half_rn(sum), __int2half_rn(other))
                          : __halves2half2(__int2half_rn(other), __int2half_rn(sum));
  return make_uint2(words[0], words[1]);
}

// sum over a group of weight * activation, before the activations' d. dots: the exact sums of quant * quant over the
// group's halves, or in dots[0] over the whole group where it has one scale.
template <class Format>
__device__ __forceinline__ float scaled_dot(const float (&scale)[2], const float (&offset)[2], float dot0, float dot1,
                                            const ActivationScale& activation) {
  float value = __fmul_rn(scale[0], dot0);
  if constexpr (Format::kScales == 2) value = __fmaf_rn(scale[1], dot1, value);
  if constexpr (Format::kHasOffset) {
    const float2 sums = __half22float2(activation.sums);
    if constexpr (Format::kScales == 2) {
      value = __fmaf_rn(offset[0], sums.x, value);
      value = __fmaf_rn(offset[1], sums.y, value);
    } else {
      value = __fmaf_rn(offset[0], sums.x + sums.y, value);
    }
  }
  return value;
}

// One element of the result, rounded to its dtype.
__device__ __forceinline__ void store_element(void* data, DType dtype, int64_t index, float value) {
  if (dtype == DType::kF16) {
    static_cast<__half*>(data)[index] = from_float<__half>(value);
  } else if (dtype == DType::kBF16) {
    static_cast<__nv_bfloat16*>(data)[index] = from_float<__nv_bfloat16>(value);
  } else {
    static_cast<float*>(data)[index] = value;
  }
}

}  // namespace sgl_kernel::SGL_TARGET
