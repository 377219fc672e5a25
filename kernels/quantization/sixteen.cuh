// Sixteen neighbouring elements of a row: what a thread quantizes at a time, and stores as 16 or 8 bytes.
#pragma once

#include <cstdint>

#include "kernels/device/fp8.cuh"
#include "kernels/device/gate.cuh"
#include "kernels/device/vec.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kSixteen = 16;

// Magnitudes are compared as the bits of non-negative floats, which order like the floats with NaN above infinity: one
// integer maximum that keeps a NaN.
__device__ __forceinline__ uint32_t magnitude_bits(float value) { return __float_as_uint(value) & 0x7fffffff; }

// amax / kLargest for a result that is normal, rounded as a division rounds it: a product with the rounded reciprocal,
// corrected by its exact remainder (Markstein 1990). Infinity and NaN stay.
template <int kLargest>
__device__ __forceinline__ float over(float amax) {
  constexpr float kReciprocal = 1.0f / kLargest;
  const float quotient = amax * kReciprocal;
  const float remainder = fmaf(-quotient, static_cast<float>(kLargest), amax);
  return amax < __uint_as_float(0x7f800000) ? fmaf(remainder, kReciprocal, quotient) : amax;
}

template <class T>
struct Sixteen {
  static constexpr int kPerVec = kVecSize<T>;
  static constexpr int kVecs = kSixteen / kPerVec;
  Vec<T, kPerVec> vecs[kVecs];

  // From a 16-byte aligned address.
  __device__ __forceinline__ void load(const T* from) {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) vecs[i] = Vec<T, kPerVec>::load(from + i * kPerVec);
  }

  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (sizeof(T) == 4) {
      return vecs[i / kPerVec][i % kPerVec];
    } else {
      const float2 pair = PairOf<T>::to_floats(pairs()[i / 2]);
      return i % 2 == 0 ? pair.x : pair.y;
    }
  }

  // Becomes silu(this) * up, rounded once: what silu_and_mul() writes.
  __device__ __forceinline__ void silu_and_mul(const Sixteen& up) {
#pragma unroll
    for (int i = 0; i < kSixteen; i += 2) {
      const float x0 = (*this)[i], x1 = (*this)[i + 1];
      const float product0 = gate<T>(x0, x0) * up[i], product1 = gate<T>(x1, x1) * up[i + 1];
      if constexpr (sizeof(T) == 4) {
        vecs[i / kPerVec][i % kPerVec] = product0;
        vecs[i / kPerVec][i % kPerVec + 1] = product1;
      } else {
        *reinterpret_cast<typename PairOf<T>::Type*>(&vecs[i / kPerVec][i % kPerVec]) =
            PairOf<T>::round(product0, product1);
      }
    }
  }

  // The largest magnitude, as bits of a float.
  __device__ __forceinline__ uint32_t amax_bits() const {
    if constexpr (sizeof(T) == 4) {
      uint32_t amax = 0;
#pragma unroll
      for (int i = 0; i < kSixteen; ++i) amax = max(amax, magnitude_bits((*this)[i]));
      return amax;
    } else {
      auto amax = __habs2(pairs()[0]);
#pragma unroll
      for (int i = 1; i < kSixteen / 2; ++i) amax = __hmax2_nan(amax, __habs2(pairs()[i]));
      const float2 both = PairOf<T>::to_floats(amax);
      return max(__float_as_uint(both.x), __float_as_uint(both.y));
    }
  }

 private:
  __device__ __forceinline__ auto pairs() const { return reinterpret_cast<const typename PairOf<T>::Type*>(&vecs[0]); }
};

// Sixteen values times `factor`, as e4m3.
template <class T>
__device__ __forceinline__ uint4 times_to_e4m3(const Sixteen<T>& values, float factor) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = e4m3x2(values[4 * i] * factor, values[4 * i + 1] * factor) |
               e4m3x2(values[4 * i + 2] * factor, values[4 * i + 3] * factor) << 16;
  }
  return {words[0], words[1], words[2], words[3]};
}

// Rounded to nearest even, saturated to [-128, 127]; NaN is 0.
__device__ __forceinline__ uint32_t int8_bits(float value) {
  int rounded;
  asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return static_cast<uint32_t>(rounded) & 0xff;
}

template <class T>
__device__ __forceinline__ uint4 times_to_int8(const Sixteen<T>& values, float factor) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = int8_bits(values[4 * i] * factor) | int8_bits(values[4 * i + 1] * factor) << 8 |
               int8_bits(values[4 * i + 2] * factor) << 16 | int8_bits(values[4 * i + 3] * factor) << 24;
  }
  return {words[0], words[1], words[2], words[3]};
}

}  // namespace sgl_kernel::SGL_TARGET
