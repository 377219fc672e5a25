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

// kLargest / amax for an amax from 1e-30 on, rounded as a division rounds it (compared for all of them on an H200): the
// reciprocal is refined, then the quotient corrected as above. Both are scaled down first, lest the reciprocal of a
// large amax be less than normal. 0 for infinity, NaN for NaN.
template <int kLargest>
__device__ __forceinline__ float under(float amax) {
  constexpr float kDown = 1.0f / 512, kDividend = kLargest * kDown;
  const float divisor = amax * kDown;
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(divisor));
  if (!(amax < __uint_as_float(0x7f800000))) return reciprocal;
  reciprocal = fmaf(fmaf(-divisor, reciprocal, 1.0f), reciprocal, reciprocal);
  const float quotient = kDividend * reciprocal;
  return fmaf(fmaf(-divisor, quotient, kDividend), reciprocal, quotient);
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

// Sixteen values times a factor that takes none of them beyond ±127.5, as int8: rounded to nearest even by adding
// 1.5 * 2^23, which leaves the integer in the float's lowest bits.
template <class T>
__device__ __forceinline__ uint4 times_to_int8(const Sixteen<T>& values, float factor) {
  constexpr float kRound = 12582912.0f;
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t bits[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) bits[j] = __float_as_uint(__fadd_rn(__fmul_rn(values[4 * i + j], factor), kRound));
    words[i] = __byte_perm(__byte_perm(bits[0], bits[1], 0x0040), __byte_perm(bits[2], bits[3], 0x0040), 0x5410);
  }
  return {words[0], words[1], words[2], words[3]};
}

}  // namespace sgl_kernel::SGL_TARGET
