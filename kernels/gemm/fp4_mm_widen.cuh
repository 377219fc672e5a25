// From NVFP4 values and their scale to f16.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/device/fp8.cuh"

namespace sgl_kernel::SGL_TARGET {

// A value's bits, moved to where f16 has sign, exponent and mantissa, are 2^-14 of it. Times the scale that is 2^-14 of
// the product, a multiple of 2^-24 below 1 with six significant bits: exact, and 2^-28 is left of the product of two.
inline constexpr float kProductFactor = 268435456.0f;  // 2^28

__device__ __forceinline__ uint32_t multiply_halves(uint32_t a, uint32_t b) {
  const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// The scale that is byte `i` of four, as a pair of f16.
__device__ __forceinline__ uint32_t scale_pair(const HalfPairs& four, int i) {
  return __byte_perm(i < 2 ? four.first : four.second, 0, i % 2 == 0 ? 0x1010 : 0x3232);
}

// (a & mask) | bits in one instruction, which the compiler makes two of.
__device__ __forceinline__ uint32_t take_bits(uint32_t a, uint32_t mask, uint32_t bits) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(mask), "r"(bits));
  return result;
}

// Values i and i + 4 of a word's eight as a pair of f16 (scaled, see above).
__device__ __forceinline__ uint32_t widen_pair(uint32_t word, int i, uint32_t scale) {
  const uint32_t top = word << (12 - 4 * i);
  return multiply_halves(take_bits(top, 0x80008000, (top & 0x70007000) >> 3), scale);
}

// All four pairs. Both operands have the same order along K.
__device__ __forceinline__ void widen(uint32_t word, uint32_t scale, uint32_t (&pairs)[4]) {
  // The upper bytes of f16, where all else is 0: of values 1, 3, 5 and 7, and of 0, 2, 4 and 6.
  const uint32_t odd = take_bits(word, 0x80808080, word >> 3 & 0x0e0e0e0e);
  const uint32_t even = take_bits(word << 4, 0x80808080, word << 1 & 0x0e0e0e0e);
  constexpr uint32_t kLow = 0x2404, kHigh = 0xff00ff00;  // the first and third bytes moved up, the others as they are
  pairs[0] = multiply_halves(__byte_perm(even, 0, kLow), scale);
  pairs[1] = multiply_halves(__byte_perm(odd, 0, kLow), scale);
  pairs[2] = multiply_halves(even & kHigh, scale);
  pairs[3] = multiply_halves(odd & kHigh, scale);
}

}  // namespace sgl_kernel::SGL_TARGET
