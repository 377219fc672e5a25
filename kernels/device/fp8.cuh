// float8 e4m3fn on the device: rounded to nearest even, saturated at ±448 (infinities too), NaN is 0x7f. The same bits
// on every target: sm_80 has no instruction for it.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace sgl_kernel::SGL_TARGET {

inline constexpr float kE4M3Max = 448.0f;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 890
__device__ __forceinline__ uint32_t e4m3_bits(float value) {
  constexpr uint32_t kRebias = (127u - 7) << 23;
  constexpr float kSmallestNormal = 0.015625f;  // 2^-6
  constexpr float kSubnormalStep = 16384.0f;    // in [2^14, 2^15) floats are 2^-9 apart, as the subnormals are
  const float inside = fminf(fabsf(value), kE4M3Max);
  const uint32_t wide = __float_as_uint(inside);
  const uint32_t normal = (wide - kRebias + 0x7ffff + (wide >> 20 & 1)) >> 20;
  const uint32_t subnormal = __float_as_uint(inside + kSubnormalStep) - __float_as_uint(kSubnormalStep);
  const uint32_t rounded = inside < kSmallestNormal ? subnormal : normal;
  return value != value ? 0x7f : rounded | (__float_as_uint(value) >> 24 & 0x80);
}
#endif

// Two neighbours, `low` in the lower byte.
__device__ __forceinline__ uint32_t e4m3x2(float low, float high) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 890
  return e4m3_bits(low) | e4m3_bits(high) << 8;
#else
  uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
#endif
}

__device__ __forceinline__ uint8_t to_e4m3(float value) { return static_cast<uint8_t>(e4m3x2(value, 0.0f) & 0xff); }

__device__ __forceinline__ float from_e4m3(uint8_t bits) {
  // Moved behind half's sign, the bits are a half of 2^-8 times the value; 0x7f and 0xff, the NaNs, are not told apart
  // from 480 by that.
  const uint32_t half_bits = (bits & 0x80u) << 8 | (bits & 0x7fu) << 7;
  const float value = __half2float(__ushort_as_half(static_cast<uint16_t>(half_bits))) * 256.0f;
  return (bits & 0x7f) == 0x7f ? __uint_as_float(0x7fffffff) : value;
}

}  // namespace sgl_kernel::SGL_TARGET
