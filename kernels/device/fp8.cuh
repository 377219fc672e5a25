// float8_e4m3fn on the device. Every value of it is exact in f16.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/device/vec.cuh"

namespace sgl_kernel::SGL_TARGET {

// What is above 448, the largest value, becomes that.
template <>
__device__ __forceinline__ __nv_fp8_e4m3 from_float<__nv_fp8_e4m3>(float value) {
  return __nv_fp8_e4m3(value);
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

}  // namespace sgl_kernel::SGL_TARGET
