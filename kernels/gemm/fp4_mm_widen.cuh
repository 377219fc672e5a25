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
  // The upper bytes of f16, where all else is 0: of values 1, 3, 5 and 7, or of 0, 2, 4 and 6. What pairs of a word
  // share the compiler computes once.
  const uint32_t bytes = i % 2 == 1 ? take_bits(word, 0x80808080, word >> 3 & 0x0e0e0e0e)
                                    : take_bits(word << 4, 0x80808080, word << 1 & 0x0e0e0e0e);
  // The first and third bytes moved up, or the others as they are.
  return multiply_halves(i < 2 ? __byte_perm(bytes, 0, 0x2404) : bytes & 0xff00ff00, scale);
}

// All four pairs. Both operands have the same order along K.
__device__ __forceinline__ void widen(uint32_t word, uint32_t scale, uint32_t (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = widen_pair(word, i, scale);
}

}  // namespace sgl_kernel::SGL_TARGET
