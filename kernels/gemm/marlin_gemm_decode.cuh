// From a lane's words of a Marlin tile to operand B of mma.m16n8k16, exactly.
//
// An integer q becomes the 16-bit float of q plus a power of two by a mask (or by a choice of bytes), from which the
// column's own bias, that power plus its zero point, is subtracted: both are exact. bf16 has too few bits for 8 and a
// power above them: see centered_pair(). Floats of 4 and 8 bits are shifted to their place, and multiplied by the power
// of two between the exponents' biases.
#pragma once

#include "kernels/gemm/marlin_gemm_params.h"
#include "kernels/gemm/mixed_mm_splits.cuh"

namespace sgl_kernel::SGL_TARGET::marlin {

enum class Format : uint8_t { kInt4, kInt8, kE4M3, kE2M1 };

constexpr int bits_of(Format format) { return format == Format::kInt4 || format == Format::kE2M1 ? 4 : 8; }

template <class T>
inline constexpr bool kIsHalf = std::is_same_v<T, __half>;

template <class To, class From>
__device__ __forceinline__ To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return *reinterpret_cast<To*>(&from);
}

template <class T>
__device__ __forceinline__ uint32_t subtract_pairs(uint32_t a, uint32_t b) {
  return bit_cast<uint32_t>(__hsub2(bit_cast<mixed_mm::Pair<T>>(a), bit_cast<mixed_mm::Pair<T>>(b)));
}

template <class T>
__device__ __forceinline__ uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  return bit_cast<uint32_t>(__hmul2(bit_cast<mixed_mm::Pair<T>>(a), bit_cast<mixed_mm::Pair<T>>(b)));
}

// (a & mask) | bits in one instruction, which the compiler makes two of.
__device__ __forceinline__ uint32_t mask_and_set(uint32_t a, uint32_t mask, uint32_t bits) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(mask), "r"(bits));
  return result;
}

// (a & mask) ^ bits.
__device__ __forceinline__ uint32_t mask_and_flip(uint32_t a, uint32_t mask, uint32_t bits) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(result) : "r"(a), "r"(mask), "r"(bits));
  return result;
}

// 2^10 in f16, 2^7 in bf16: numbers whose last place is 1.
template <class T>
inline constexpr uint32_t kUnitPlace = kIsHalf<T> ? 0x64006400 : 0x43004300;

// Two integers of 8 bits, 16 bits apart, less 128, as bf16: 128 and the low seven bits, less 128 if the top bit is set,
// else 256.
__device__ __forceinline__ uint32_t centered_pair(uint32_t word) {
  return subtract_pairs<__nv_bfloat16>(mask_and_set(word, 0x007f007f, kUnitPlace<__nv_bfloat16>),
                                       mask_and_flip(word, 0x00800080, 0x43804380));
}

// What decode() subtracts from a column's numbers whose zero point is `zero`.
template <class T, Format kFormat>
__device__ __forceinline__ uint32_t zero_bias(uint32_t zero) {
  const uint32_t pair = zero | zero << 16;
  if constexpr (kFormat == Format::kInt8 && !kIsHalf<T>) {
    return centered_pair(pair);
  } else {
    return kUnitPlace<T> | pair;
  }
}

// What is missing from a float of 4 or 8 bits whose bits were shifted to their place: 2^8 or 2^120, 2^14 or 2^126.
template <class T, Format kFormat>
inline constexpr uint32_t kRebias =
    kFormat == Format::kE4M3 ? (kIsHalf<T> ? 0x5c005c00 : 0x7b807b80) : (kIsHalf<T> ? 0x74007400 : 0x7e807e80);

// Rows 2t, 2t + 1 (b0) and 2t + 8, 2t + 9 (b1) of an n8 tile's column g: tile `half` of the two of a word of 4-bit
// numbers, or the tile of a word of 8-bit ones. Floats still lack kRebias. kCentered: the zero point is the type's 128.
template <class T, Format kFormat, bool kCentered = false>
__device__ __forceinline__ void decode_raw(uint32_t word, int half, uint32_t bias, uint32_t& b0, uint32_t& b1) {
  if constexpr (kFormat == Format::kInt4) {
    constexpr uint32_t kMask = 0x000f000f;
    b0 = subtract_pairs<T>(mask_and_set(word >> 8 * half, kMask, kUnitPlace<T>), bias);
    b1 = subtract_pairs<T>(mask_and_set(word >> (8 * half + 4), kMask, kUnitPlace<T>), bias);
  } else if constexpr (kFormat == Format::kInt8 && kIsHalf<T>) {
    b0 = subtract_pairs<T>(__byte_perm(word, kUnitPlace<T>, 0x5250), bias);
    b1 = subtract_pairs<T>(__byte_perm(word, kUnitPlace<T>, 0x5351), bias);
  } else if constexpr (kFormat == Format::kInt8) {
    b0 = centered_pair(word);
    b1 = centered_pair(word >> 8);
    if constexpr (!kCentered) {
      b0 = subtract_pairs<T>(b0, bias);
      b1 = subtract_pairs<T>(b1, bias);
    }
  } else if constexpr (kFormat == Format::kE4M3) {
    constexpr int kShift = kIsHalf<T> ? 1 : 4;  // 5 or 8 bits of exponent instead of 4
    const uint32_t low = word << 8;
    b0 = mask_and_set(low, 0x80008000, (low & 0x7f007f00) >> kShift);
    b1 = mask_and_set(word, 0x80008000, (word & 0x7f007f00) >> kShift);
  } else {
    constexpr int kShift = kIsHalf<T> ? 3 : 6;  // 5 or 8 bits of exponent instead of 2
    const uint32_t first = word << (half == 0 ? 12 : 4), second = word << (half == 0 ? 8 : 0);
    b0 = mask_and_set(first, 0x80008000, (first & 0x70007000) >> kShift);
    b1 = mask_and_set(second, 0x80008000, (second & 0x70007000) >> kShift);
  }
}

// The same, true numbers.
template <class T, Format kFormat>
__device__ __forceinline__ void decode(uint32_t word, int half, uint32_t bias, uint32_t& b0, uint32_t& b1) {
  decode_raw<T, kFormat>(word, half, bias, b0, b1);
  if constexpr (kFormat == Format::kE4M3 || kFormat == Format::kE2M1) {
    b0 = multiply_pairs<T>(b0, kRebias<T, kFormat>);
    b1 = multiply_pairs<T>(b1, kRebias<T, kFormat>);
  }
}

// What is left of a checkpoint's scale once decode() gives true numbers.
template <class T, Format kFormat>
inline constexpr float kScaleFactor = kFormat != Format::kE4M3 ? 1.0f
                                      : kIsHalf<T>             ? 0x1p-8f
                                                               : 0x1p-120f;

// Two scales of float4_e2m1f, bytes 0 and 2 of a word, which are those of neighbouring places, as what decode_raw()
// gives is multiplied with: times 2^7 (bf16: 2^107).
template <class T>
__device__ __forceinline__ uint32_t fp4_scale_pair(uint32_t word) {
  static_assert(marlin_fp4_scale_byte(8, 0, 1) == 2 && marlin_fp4_scale_byte(8, 1, 0) == 8);
  const uint32_t bytes = word & 0x00ff00ff;
  if constexpr (kIsHalf<T>) return bytes << 7;
  constexpr uint32_t kTwoTo106 = 0x74807480;  // twice
  return multiply_pairs<T>(multiply_pairs<T>(bytes << 4, kTwoTo106), kTwoTo106);
}

// What their sums, times the global scale, still lack: decode_raw() leaves out 2^14 (bf16: 2^126), the scales have 2^7
// (bf16: 2^107) too much, and the global scale 2^7 (bf16: 2^119).
template <class T>
inline constexpr float kFp4Factor = kIsHalf<T> ? 1.0f : 0x1p-100f;

}  // namespace sgl_kernel::SGL_TARGET::marlin
