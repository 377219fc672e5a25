// float8_e4m3fn on the device. From float it rounds to nearest even and saturates at ±448 (infinities too); every NaN
// becomes 0x7f. The same bits on every target: sm_80 has no instruction for it. Every value of it is exact in f16.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/device/vec.cuh"

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

template <>
__device__ __forceinline__ __nv_fp8_e4m3 from_float<__nv_fp8_e4m3>(float value) {
  __nv_fp8_e4m3 result;
  result.__x = to_e4m3(value);
  return result;
}

// Four e4m3 values, the first in the lowest byte, as f16: the first two and the last two.
struct HalfPairs {
  uint32_t first, second;
};

#if __CUDA_ARCH__ >= 890
__device__ __forceinline__ HalfPairs half_of_e4m3(uint32_t four) {
  HalfPairs pairs;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, low;\n"
      "cvt.rn.f16x2.e4m3x2 %1, high;\n"
      "}"
      : "=r"(pairs.first), "=r"(pairs.second)
      : "r"(four));
  return pairs;
}
#else
// `pair` holds the two values in the high bytes of its halves. Shifted by one, the exponent lies where f16 has it, 8
// short in its bias; e4m3's NaN needs a NaN's exponent.
__device__ __forceinline__ uint32_t half_of_e4m3_bytes(uint32_t pair) {
  const uint32_t magnitude = (pair & 0x7f007f00) >> 1;
  const uint32_t bits = (pair & 0x80008000) | magnitude;
  const __half2 value = __hmul2(*reinterpret_cast<const __half2*>(&bits), __half2half2(__ushort_as_half(0x5c00)));
  return *reinterpret_cast<const uint32_t*>(&value) | (__vcmpeq2(magnitude, 0x3f803f80) & 0x7e007e00);
}

__device__ __forceinline__ HalfPairs half_of_e4m3(uint32_t four) {
  return {half_of_e4m3_bytes(__byte_perm(four, 0, 0x1404)), half_of_e4m3_bytes(__byte_perm(four, 0, 0x3424))};
}
#endif

__device__ __forceinline__ float from_e4m3(uint8_t bits) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(half_of_e4m3(bits).first & 0xffff)));
}

}  // namespace sgl_kernel::SGL_TARGET
