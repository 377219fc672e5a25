// From NVFP4 values and their scale to f16.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/device/fp8.cuh"

namespace sgl_kernel::SGL_TARGET {

// A value's bits, moved to where f16 has sign, exponent and mantissa, are 2^-14 of it. Times the scale that is 2^-7 of
// the product, a multiple of 2^-17 up to 2^5: exact, and 2^-14 is left of the product of two.
inline constexpr float kScaleFactor = 128.0f;      // 2^7; the largest scale, 448, stays below f16's largest number
inline constexpr float kProductFactor = 16384.0f;  // 2^14

__device__ __forceinline__ uint32_t multiply_halves(uint32_t a, uint32_t b) {
  const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// The scale that is byte `i` of four as a pair of f16, times kScaleFactor.
__device__ __forceinline__ uint32_t scale_pair(const HalfPairs& four, int i) {
  const __half2 factor = __float2half2_rn(kScaleFactor);
  const uint32_t two = i < 2 ? four.first : four.second;
  return multiply_halves(__byte_perm(two, 0, i % 2 == 0 ? 0x1010 : 0x3232),
                         *reinterpret_cast<const uint32_t*>(&factor));
}

// Values i and i + 4 of a word's eight as a pair of f16 (scaled, see above).
__device__ __forceinline__ uint32_t widen_pair(uint32_t word, int i, uint32_t scale) {
  const uint32_t top = word << (12 - 4 * i);
  // (top & 0x80008000) | … in one instruction, which the compiler makes two of.
  uint32_t bits;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(bits) : "r"(top), "r"(0x80008000), "r"((top & 0x70007000) >> 3));
  return multiply_halves(bits, scale);
}

// All four pairs. Both operands have the same order along K.
__device__ __forceinline__ void widen(uint32_t word, uint32_t scale, uint32_t (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = widen_pair(word, i, scale);
}

}  // namespace sgl_kernel::SGL_TARGET
