// The block layouts of ggml's weight formats, as facts that the host and the device share. Plain C++20 that nvcc takes.
//
// A block holds block_size consecutive elements of a row. Every format says of its element i, with h = i / 16:
//   value[i] = scale[h] * q[i] + offset[h]
// q an integer of at most 8 bits, scale and offset f32 that are exact products of the block's f16 numbers and small
// integers (hence f32 rounds twice, in the order written). The offset is absent (not +0) from the formats that list
// none. d, dmin, m: the block's f16 numbers. Multi-byte fields are little-endian.
#pragma once

#include <cstdint>

#include "kernels/quantization/ggml_grids.h"

namespace sgl_kernel::ggml {

enum Type : int64_t {
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kIQ1_M = 29,
};

// An f16 as its bits: the alignment of a block is 2 at most, and most blocks' size is no multiple of 4.
using F16Bits = uint16_t;

// In the formats of 32 elements, element i < 16 is the low nibble of qs[i], element i + 16 the high one.

struct BlockQ4_0 {  // scale d, q = nibble - 8
  F16Bits d;
  uint8_t qs[16];
};

struct BlockQ4_1 {  // scale d, offset m, q = nibble
  F16Bits d;
  F16Bits m;
  uint8_t qs[16];
};

struct BlockQ5_0 {  // scale d, q = (nibble | bit i of qh << 4) - 16
  F16Bits d;
  uint8_t qh[4];
  uint8_t qs[16];
};

struct BlockQ5_1 {  // scale d, offset m, q = nibble | bit i of qh << 4
  F16Bits d;
  F16Bits m;
  uint8_t qh[4];
  uint8_t qs[16];
};

struct BlockQ8_0 {  // scale d
  F16Bits d;
  int8_t qs[32];
};

struct BlockIQ4_NL {  // scale d, q = kIq4Values[nibble]
  F16Bits d;
  uint8_t qs[16];
};

// The formats of 256 elements.

// scale d * (scales[h] & 15), offset -dmin * (scales[h] >> 4).
// q[128 c + 32 s + j] = bits 2 s and 2 s + 1 of qs[32 c + j]      (j < 32, s < 4, c < 2)
struct BlockQ2_K {
  uint8_t scales[16];
  uint8_t qs[64];
  F16Bits d;
  F16Bits dmin;
};

// scale d * (s[h] - 32), s[h] of 6 bits: its low 4 are nibble h / 8 of scales[h % 8], its high 2 are bits 2 (h / 4)
// and up of scales[8 + h % 4].
// q[128 c + 32 s + j] = (bits 2 s and 2 s + 1 of qs[32 c + j]) - (bit 4 c + s of hmask[j] ? 0 : 4)
struct BlockQ3_K {
  uint8_t hmask[32];
  uint8_t qs[64];
  uint8_t scales[12];
  F16Bits d;
};

// scale d * s[g], offset -dmin * m[g] for g = i / 32, both of 6 bits: see scale_and_min().
// q[64 c + 32 s + j] = nibble s of qs[32 c + j]      (j < 32, s < 2, c < 4)
struct BlockQ4_K {
  F16Bits d;
  F16Bits dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};

// As Q4_K, and bit 4 of q[i] is bit i / 32 of qh[i % 32].
struct BlockQ5_K {
  F16Bits d;
  F16Bits dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};

// scale d * scales[h].
// q[128 c + 64 s + j]: low 4 bits are nibble s of ql[64 c + j] (j < 64, s < 2, c < 2);
// q[128 c + 32 s + j]: high 2 bits are bits 2 s and up of qh[32 c + j] (j < 32, s < 4); minus 32.
struct BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  F16Bits d;
};

// The IQ formats: 8 (or 4) elements are an entry of a grid with signs. A sign of 7 bits stands for 8: even_signs().

// For each g = i / 32 two words: four grid indices of 8 bits; four signs of 7 bits, below a scale of 4 bits.
// scale d * (0.5 + s) * 0.25, q = +-grid
struct BlockIQ2_XXS {
  F16Bits d;
  uint16_t qs[32];  // [8 groups][2 words of 32 bits]
};

// For each 8 elements: a grid index of 9 bits below a sign of 7. scale d * (0.5 + nibble h % 2 of scales[h / 2]) * 0.25
struct BlockIQ2_XS {
  F16Bits d;
  uint16_t qs[32];
  uint8_t scales[8];
};

// For each 8 elements e: a grid index of 10 bits, its high 2 are bits 2 (e % 4) and up of qh[e / 4]; a sign of 8 bits.
// Scales as IQ2_XS.
struct BlockIQ2_S {
  F16Bits d;
  uint8_t qs[32];
  uint8_t signs[32];
  uint8_t qh[8];
  uint8_t scales[8];
};

// For each 4 elements: a grid index. For each g = i / 32 a word: four signs of 7 bits, below a scale of 4 bits.
// scale d * (0.5 + s) * 0.5
struct BlockIQ3_XXS {
  F16Bits d;
  uint8_t qs[64];
  uint16_t signs_and_scales[16];  // [8 groups] words of 32 bits
};

// For each 4 elements e: a grid index of 9 bits, its high one is bit e % 8 of qh[e / 8]. A sign of 8 bits for each 8
// elements. scale d * (1 + 2 * (nibble g % 2 of scales[g / 2])), g = i / 32
struct BlockIQ3_S {
  F16Bits d;
  uint8_t qs[64];
  uint8_t qh[8];
  uint8_t signs[32];
  uint8_t scales[4];
};

// For each g = i / 32 a word qh: four times 3 high bits of the grid index of 8 elements, a scale s of 3 bits, and the
// sign of delta. value = d * (2 s + 1) * (grid +- 1/8): scale d * (2 s + 1) / 8, q = 8 grid +- 1
struct BlockIQ1_S {
  F16Bits d;
  uint8_t qs[32];
  uint16_t qh[8];
};

// For each 8 elements e: nibble e % 2 of qh[e / 2] holds the 3 high bits of the grid index and delta's sign. Word w of
// scales holds 4 scales of 3 bits, for h = 4 w .. 4 w + 3, below nibble w of d. Values as IQ1_S.
struct BlockIQ1_M {
  uint8_t qs[32];
  uint8_t qh[16];
  uint16_t scales[4];
};

// scale d * (s[g] - 32) for g = i / 32, s of 6 bits: low 4 are nibble g % 2 of scales_l[g / 2], high 2 are bits 2 g and
// up of scales_h. q[32 g + 16 s + j] = kIq4Values[nibble s of qs[16 g + j]]      (j < 16, s < 2)
struct BlockIQ4_XS {
  F16Bits d;
  uint16_t scales_h;
  uint8_t scales_l[4];
  uint8_t qs[128];
};

struct TypeInfo {
  int block_size;   // elements; 0: no such type
  int block_bytes;  // even
};

constexpr TypeInfo type_info(int64_t type) {
  switch (type) {
    case kQ4_0:
      return {32, sizeof(BlockQ4_0)};
    case kQ4_1:
      return {32, sizeof(BlockQ4_1)};
    case kQ5_0:
      return {32, sizeof(BlockQ5_0)};
    case kQ5_1:
      return {32, sizeof(BlockQ5_1)};
    case kQ8_0:
      return {32, sizeof(BlockQ8_0)};
    case kIQ4_NL:
      return {32, sizeof(BlockIQ4_NL)};
    case kQ2_K:
      return {256, sizeof(BlockQ2_K)};
    case kQ3_K:
      return {256, sizeof(BlockQ3_K)};
    case kQ4_K:
      return {256, sizeof(BlockQ4_K)};
    case kQ5_K:
      return {256, sizeof(BlockQ5_K)};
    case kQ6_K:
      return {256, sizeof(BlockQ6_K)};
    case kIQ2_XXS:
      return {256, sizeof(BlockIQ2_XXS)};
    case kIQ2_XS:
      return {256, sizeof(BlockIQ2_XS)};
    case kIQ2_S:
      return {256, sizeof(BlockIQ2_S)};
    case kIQ3_XXS:
      return {256, sizeof(BlockIQ3_XXS)};
    case kIQ3_S:
      return {256, sizeof(BlockIQ3_S)};
    case kIQ1_S:
      return {256, sizeof(BlockIQ1_S)};
    case kIQ1_M:
      return {256, sizeof(BlockIQ1_M)};
    case kIQ4_XS:
      return {256, sizeof(BlockIQ4_XS)};
  }
  return {0, 0};
}

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 &&
              sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34 && sizeof(BlockIQ4_NL) == 18);
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144 &&
              sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);
static_assert(sizeof(BlockIQ2_XXS) == 66 && sizeof(BlockIQ2_XS) == 74 && sizeof(BlockIQ2_S) == 82 &&
              sizeof(BlockIQ3_XXS) == 98 && sizeof(BlockIQ3_S) == 110 && sizeof(BlockIQ1_S) == 50 &&
              sizeof(BlockIQ1_M) == 56 && sizeof(BlockIQ4_XS) == 136);

// The 6-bit scale and minimum of group g < 8 in the 12 bytes of Q4_K and Q5_K. For g < 4 they are the low 6 bits of
// byte g and byte g + 4; for the others the low 4 bits share byte g + 4, and the high 2 are the high 2 bits of bytes
// g - 4 and g.
struct ScaleAndMin {
  int scale;
  int min;
};

constexpr ScaleAndMin scale_and_min(const uint8_t* scales, int g) {
  if (g < 4) return {scales[g] & 63, scales[g + 4] & 63};
  return {(scales[g + 4] & 15) | (scales[g - 4] >> 6 << 4), (scales[g + 4] >> 4) | (scales[g] >> 6 << 4)};
}

// 7 sign bits and an eighth that makes the number of ones even. A one is minus.
constexpr uint32_t even_signs(uint32_t bits) {
  uint32_t parity = bits ^ bits >> 4;
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return bits | (parity & 1) << 7;
}

inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// A grid with a byte for each element, element j of an entry in bits 8 j and up. A device variable may be initialized
// with one: `__device__ const Grid<uint64_t, 256> iq2_xxs_grid = kIq2XxsGrid;`
template <class Entry, int kSize>
struct Grid {
  Entry entries[kSize];
};

template <class Entry, int kSize, int kCodes>
constexpr Grid<Entry, kSize> expand_grid(const uint16_t (&packed)[kSize], const int8_t (&values)[kCodes]) {
  constexpr int kElements = sizeof(Entry), kBits = 16 / kElements;
  Grid<Entry, kSize> grid = {};
  for (int i = 0; i < kSize; ++i) {
    for (int j = 0; j < kElements; ++j) {
      const int8_t value = values[packed[i] >> (kBits * j) & ((1 << kBits) - 1)];
      grid.entries[i] |= static_cast<Entry>(static_cast<uint8_t>(value)) << (8 * j);
    }
  }
  return grid;
}

inline constexpr int8_t kIq2Values[] = {8, 25, 43};
inline constexpr int8_t kIq3XxsValues[] = {4, 12, 20, 28, 36, 44, 52, 62};
inline constexpr int8_t kIq3SValues[] = {1, 3, 5, 7, 9, 11, 13, 15};
inline constexpr int8_t kIq1Values[] = {-1, 0, 1};

inline constexpr Grid<uint64_t, 256> kIq2XxsGrid = expand_grid<uint64_t>(kIq2XxsPacked, kIq2Values);
inline constexpr Grid<uint64_t, 512> kIq2XsGrid = expand_grid<uint64_t>(kIq2XsPacked, kIq2Values);
inline constexpr Grid<uint64_t, 1024> kIq2SGrid = expand_grid<uint64_t>(kIq2SPacked, kIq2Values);
inline constexpr Grid<uint32_t, 256> kIq3XxsGrid = expand_grid<uint32_t>(kIq3XxsPacked, kIq3XxsValues);
inline constexpr Grid<uint32_t, 512> kIq3SGrid = expand_grid<uint32_t>(kIq3SPacked, kIq3SValues);
inline constexpr Grid<uint64_t, 2048> kIq1SGrid = expand_grid<uint64_t>(kIq1SPacked, kIq1Values);

}  // namespace sgl_kernel::ggml
