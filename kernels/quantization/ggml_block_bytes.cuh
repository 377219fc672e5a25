// The bytes of ggml's blocks on a GPU: loads at any even address, four bytes at once in a word, and the grids.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/quantization/ggml_blocks.h"

namespace sgl_kernel::SGL_TARGET {

// kWords words at an even address: blocks are aligned to no more. Reads nothing beyond them.
template <int kWords>
__device__ __forceinline__ void load_words(const void* source, uint32_t (&words)[kWords]) {
  const uint16_t* halves = static_cast<const uint16_t*>(source);
  uint32_t previous = static_cast<uint32_t>(halves[0]) << 16;
  // The aligned words behind the first two bytes; if `source` itself is aligned they are the result.
  const uint64_t address = reinterpret_cast<uint64_t>(source);
  const uint32_t* aligned = reinterpret_cast<const uint32_t*>(static_cast<const uint8_t*>(source) + (address & 2));
  const uint32_t shift = (address & 2) != 0 ? 16 : 32;
#pragma unroll
  for (int i = 0; i + 1 < kWords; ++i) {
    const uint32_t word = aligned[i];
    words[i] = __funnelshift_rc(previous, word, shift);
    previous = word;
  }
  words[kWords - 1] = halves[2 * kWords - 2] | static_cast<uint32_t>(halves[2 * kWords - 1]) << 16;
}

__device__ __forceinline__ uint32_t load_word(const void* source) {
  uint32_t words[1];
  load_words(source, words);
  return words[0];
}

__device__ __forceinline__ float half_bits_to_float(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
}

// Each byte minus kAmount, as a signed byte, without a carry into the next: a byte is less than 128 + kAmount.
template <int kAmount>
__device__ __forceinline__ uint32_t subtract_from_bytes(uint32_t bytes) {
  return (bytes + 0x01010101u * (0x80 - kAmount)) ^ 0x80808080u;
}

// Bit `from` of each byte to bit `to` of it, and the ones above to those above, as long as they stay in the byte. The
// other bits are anything.
__device__ __forceinline__ uint32_t move_bits(uint32_t bytes, int from, int to) {
  return __funnelshift_l(bytes, bytes, to - from);
}

// Bit i of the low 4 to the lowest bit of byte i.
__device__ __forceinline__ uint32_t spread_bits(uint32_t bits) { return (bits & 0xf) * 0x00204081u & 0x01010101u; }

// Negates the bytes, none of which is 0, whose bit is set.
__device__ __forceinline__ uint32_t apply_signs(uint32_t bytes, uint32_t bits) {
  const uint32_t ones = spread_bits(bits);
  return (bytes ^ ones * 0xff) + ones;
}

// The 16 nibbles of a group's half: words 0..3 from the low ones, 4..7 from the high ones.
__device__ __forceinline__ void split_nibbles(const uint32_t (&packed)[4], uint32_t (&quants)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    quants[i] = packed[i] & 0x0f0f0f0f;
    quants[4 + i] = packed[i] >> 4 & 0x0f0f0f0f;
  }
}

// Bit i of `high` becomes bit 4 of element i.
__device__ __forceinline__ void add_fifth_bits(uint32_t high, uint32_t (&quants)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) quants[i] |= spread_bits(high >> (4 * i)) << 4;
}

// The low nibbles of four bytes, and the high ones, each replaced by its entry of kIq4Values.
__device__ __forceinline__ uint2 look_up_nibbles(uint32_t packed) {
  constexpr auto word = [](int first) {
    uint32_t bytes = 0;
    for (int i = 0; i < 4; ++i)
      bytes |= static_cast<uint32_t>(static_cast<uint8_t>(ggml::kIq4Values[first + i])) << 8 * i;
    return bytes;
  };
  constexpr uint32_t table[4] = {word(0), word(4), word(8), word(12)};
  uint32_t pair[2];  // bytes: the low and high nibble of byte 0, of byte 1; then of bytes 2 and 3
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const uint32_t nibbles = packed >> (16 * j) & 0xffff;
    const uint32_t lower = __byte_perm(table[0], table[1], nibbles & 0x7777);
    const uint32_t upper = __byte_perm(table[2], table[3], nibbles & 0x7777);
    pair[j] = __byte_perm(lower, upper, 0x3210 | (nibbles & 0x8888) >> 1);
  }
  return make_uint2(__byte_perm(pair[0], pair[1], 0x6420), __byte_perm(pair[0], pair[1], 0x7531));
}

// As split_nibbles().
__device__ __forceinline__ void look_up_nibbles(const uint32_t (&packed)[4], uint32_t (&quants)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint2 words = look_up_nibbles(packed[i]);
    quants[i] = words.x;
    quants[4 + i] = words.y;
  }
}

// The grids as the device has them.
__device__ const auto iq2_xxs_grid = ggml::kIq2XxsGrid;
__device__ const auto iq2_xs_grid = ggml::kIq2XsGrid;
__device__ const auto iq2_s_grid = ggml::kIq2SGrid;
__device__ const auto iq3_xxs_grid = ggml::kIq3XxsGrid;
__device__ const auto iq3_s_grid = ggml::kIq3SGrid;
__device__ const auto iq1_s_grid = ggml::kIq1SGrid;

// Elements 8 e .. 8 e + 7 of a group, by the entry of a grid and 8 signs.
__device__ __forceinline__ void set_signed_eight(uint32_t (&quants)[8], int e, uint64_t entry, uint32_t signs) {
  quants[2 * e] = apply_signs(static_cast<uint32_t>(entry), signs);
  quants[2 * e + 1] = apply_signs(static_cast<uint32_t>(entry >> 32), signs >> 4);
}

// 8 * grid + 1, or - 1 if `negative`: IQ1's values in eighths.
__device__ __forceinline__ uint32_t iq1_word(uint32_t grid_word, bool negative) {
  const uint32_t delta = negative ? 0u - 0x01010101u : 0x01010101u;
  const uint32_t eightfold = grid_word << 3 & 0xf8f8f8f8;
  return ((eightfold ^ 0x80808080) + delta) ^ 0x80808080;
}
__device__ __forceinline__ void set_iq1_eight(uint32_t (&quants)[8], int e, uint32_t index, bool negative) {
  const uint64_t entry = iq1_s_grid.entries[index];
#pragma unroll
  for (int j = 0; j < 2; ++j) quants[2 * e + j] = iq1_word(static_cast<uint32_t>(entry >> (32 * j)), negative);
}

// Half w % 2 of an entry of 8 bytes.
template <class Grid>
__device__ __forceinline__ uint32_t grid_word(const Grid& grid, uint32_t index, int w) {
  return reinterpret_cast<const uint32_t*>(grid.entries)[2 * index + w % 2];
}

}  // namespace sgl_kernel::SGL_TARGET
