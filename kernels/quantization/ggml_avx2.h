// The blocks of ggml_blocks.h, decoded with AVX2 for ggml_avx2_cpu.cc.
#pragma once

#if defined(__x86_64__)

#include <cstdint>
#include <cstring>

#include "kernels/base/cpu_avx2.h"
#include "kernels/quantization/ggml_dot.h"

#define SGL_AVX2_INLINE SGL_AVX2 __attribute__((always_inline)) inline

namespace sgl_kernel::ggml {
namespace {

SGL_AVX2_INLINE __m128i load16(const void* bytes) { return _mm_loadu_si128(static_cast<const __m128i*>(bytes)); }
SGL_AVX2_INLINE __m256i load32(const void* bytes) { return _mm256_loadu_si256(static_cast<const __m256i*>(bytes)); }
SGL_AVX2_INLINE void store32(void* bytes, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(bytes), value); }

SGL_AVX2_INLINE uint32_t load_word(const void* bytes) {
  uint32_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

SGL_AVX2_INLINE float to_float(F16Bits bits) { return _cvtsh_ss(bits); }

// 8 (signed) bytes as f32.
SGL_AVX2_INLINE __m256 to_floats(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }

// 16 bytes as 32 nibbles: the low ones, then the high ones.
SGL_AVX2_INLINE __m256i nibbles(const uint8_t* bytes) {
  const __m128i low = load16(bytes), high = _mm_srli_epi16(low, 4);
  return _mm256_and_si256(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1), _mm256_set1_epi8(15));
}

// Byte j is -1 where bit j is set, else 0.
SGL_AVX2_INLINE __m256i mask_of(uint32_t bits) {
  const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  const __m256i chosen =
      _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), byte_of), bit_of);
  return _mm256_cmpeq_epi8(chosen, bit_of);
}

// Byte j is 16 where bit j is set, else 0.
SGL_AVX2_INLINE __m256i fifth_bits(uint32_t bits) { return _mm256_and_si256(mask_of(bits), _mm256_set1_epi8(16)); }

// The bytes of a block of 32 elements, biased as Packing says.
SGL_AVX2_INLINE __m256i bytes_of(const BlockQ4_0& block) { return nibbles(block.qs); }
SGL_AVX2_INLINE __m256i bytes_of(const BlockQ4_1& block) { return nibbles(block.qs); }
SGL_AVX2_INLINE __m256i bytes_of(const BlockQ5_0& block) {
  return _mm256_or_si256(nibbles(block.qs), fifth_bits(load_word(block.qh)));
}
SGL_AVX2_INLINE __m256i bytes_of(const BlockQ5_1& block) {
  return _mm256_or_si256(nibbles(block.qs), fifth_bits(load_word(block.qh)));
}
SGL_AVX2_INLINE __m256i bytes_of(const BlockQ8_0& block) { return load32(block.qs); }
SGL_AVX2_INLINE __m256i bytes_of(const BlockIQ4_NL& block) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(kIq4Values)), nibbles(block.qs));
}

// put(): row r of the 8 groups of a block of 256 elements; its 8 scales (16 for a format with two for a group), and as
// many offsets if it has any.

SGL_AVX2_INLINE void put(const BlockQ2_K& block, StripGroup* strip, int r, float* scale, float* offset) {
  const __m256i mask = _mm256_set1_epi8(3);
#pragma GCC unroll 2
  for (int c = 0; c < 2; ++c) {
    const __m256i bits = load32(block.qs + 32 * c);
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      store32(strip[4 * c + s].q[r], _mm256_and_si256(_mm256_srli_epi16(bits, 2 * s), mask));
    }
  }
  const __m128i both = load16(block.scales), low_mask = _mm_set1_epi8(15);
  const __m128i scales = _mm_and_si128(both, low_mask), mins = _mm_and_si128(_mm_srli_epi16(both, 4), low_mask);
  const __m256 d = _mm256_set1_ps(to_float(block.d)), minus_dmin = _mm256_set1_ps(-to_float(block.dmin));
  _mm256_store_ps(scale, _mm256_mul_ps(d, to_floats(scales)));
  _mm256_store_ps(scale + 8, _mm256_mul_ps(d, to_floats(_mm_srli_si128(scales, 8))));
  _mm256_store_ps(offset, _mm256_mul_ps(minus_dmin, to_floats(mins)));
  _mm256_store_ps(offset + 8, _mm256_mul_ps(minus_dmin, to_floats(_mm_srli_si128(mins, 8))));
}

SGL_AVX2_INLINE void put(const BlockQ3_K& block, StripGroup* strip, int r, float* scale, float*) {
  const __m256i mask = _mm256_set1_epi8(3), one = _mm256_set1_epi8(1), high = load32(block.hmask);
#pragma GCC unroll 2
  for (int c = 0; c < 2; ++c) {
    const __m256i bits = load32(block.qs + 32 * c);
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      const __m256i third = _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(high, 4 * c + s), one), 2);
      store32(strip[4 * c + s].q[r], _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(bits, 2 * s), mask), third));
    }
  }
  const uint32_t low0 = load_word(block.scales), low1 = load_word(block.scales + 4);
  const uint32_t top = load_word(block.scales + 8), low_mask = 0x0f0f0f0f, top_mask = 0x30303030;
  const __m128i scales = _mm_setr_epi32(static_cast<int>((low0 & low_mask) | (top << 4 & top_mask)),
                                        static_cast<int>((low1 & low_mask) | (top << 2 & top_mask)),
                                        static_cast<int>((low0 >> 4 & low_mask) | (top & top_mask)),
                                        static_cast<int>((low1 >> 4 & low_mask) | (top >> 2 & top_mask)));
  const __m128i centred = _mm_sub_epi8(scales, _mm_set1_epi8(32));
  const __m256 d = _mm256_set1_ps(to_float(block.d));
  _mm256_store_ps(scale, _mm256_mul_ps(d, to_floats(centred)));
  _mm256_store_ps(scale + 8, _mm256_mul_ps(d, to_floats(_mm_srli_si128(centred, 8))));
}

// The scales and offsets of Q4_K and Q5_K: see scale_and_min().
template <class Block>
SGL_AVX2_INLINE void put_scales(const Block& block, float* scale, float* offset) {
  const uint32_t first = load_word(block.scales), second = load_word(block.scales + 4);
  const uint32_t third = load_word(block.scales + 8), low_mask = 0x0f0f0f0f, top_mask = 0x30303030;
  const __m128i scales = _mm_setr_epi32(static_cast<int>(first & 0x3f3f3f3f),
                                        static_cast<int>((third & low_mask) | (first >> 2 & top_mask)), 0, 0);
  const __m128i mins = _mm_setr_epi32(static_cast<int>(second & 0x3f3f3f3f),
                                      static_cast<int>((third >> 4 & low_mask) | (second >> 2 & top_mask)), 0, 0);
  _mm256_store_ps(scale, _mm256_mul_ps(_mm256_set1_ps(to_float(block.d)), to_floats(scales)));
  _mm256_store_ps(offset, _mm256_mul_ps(_mm256_set1_ps(-to_float(block.dmin)), to_floats(mins)));
}

SGL_AVX2_INLINE void put(const BlockQ4_K& block, StripGroup* strip, int r, float* scale, float* offset) {
  const __m256i mask = _mm256_set1_epi8(15);
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m256i both = load32(block.qs + 32 * c);
    store32(strip[2 * c].q[r], _mm256_and_si256(both, mask));
    store32(strip[2 * c + 1].q[r], _mm256_and_si256(_mm256_srli_epi16(both, 4), mask));
  }
  put_scales(block, scale, offset);
}

SGL_AVX2_INLINE void put(const BlockQ5_K& block, StripGroup* strip, int r, float* scale, float* offset) {
  const __m256i mask = _mm256_set1_epi8(15), one = _mm256_set1_epi8(1), high = load32(block.qh);
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m256i both = load32(block.qs + 32 * c);
    const __m256i even = _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(high, 2 * c), one), 4);
    const __m256i odd = _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(high, 2 * c + 1), one), 4);
    store32(strip[2 * c].q[r], _mm256_or_si256(_mm256_and_si256(both, mask), even));
    store32(strip[2 * c + 1].q[r], _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(both, 4), mask), odd));
  }
  put_scales(block, scale, offset);
}

// Low nibbles of `low` below bits 4 and 5 of `high`.
SGL_AVX2_INLINE __m256i six_bits(__m256i low, __m256i high) {
  return _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(15)), _mm256_and_si256(high, _mm256_set1_epi8(48)));
}

SGL_AVX2_INLINE void put(const BlockQ6_K& block, StripGroup* strip, int r, float* scale, float*) {
#pragma GCC unroll 2
  for (int c = 0; c < 2; ++c) {
    const __m256i low0 = load32(block.ql + 64 * c), low1 = load32(block.ql + 64 * c + 32);
    const __m256i high = load32(block.qh + 32 * c);
    StripGroup* out = strip + 4 * c;
    store32(out[0].q[r], six_bits(low0, _mm256_slli_epi16(high, 4)));
    store32(out[1].q[r], six_bits(low1, _mm256_slli_epi16(high, 2)));
    store32(out[2].q[r], six_bits(_mm256_srli_epi16(low0, 4), high));
    store32(out[3].q[r], six_bits(_mm256_srli_epi16(low1, 4), _mm256_srli_epi16(high, 2)));
  }
  const __m128i scales = load16(block.scales);
  const __m256 d = _mm256_set1_ps(to_float(block.d));
  _mm256_store_ps(scale, _mm256_mul_ps(d, to_floats(scales)));
  _mm256_store_ps(scale + 8, _mm256_mul_ps(d, to_floats(_mm_srli_si128(scales, 8))));
}

SGL_AVX2_INLINE void put(const BlockIQ4_XS& block, StripGroup* strip, int r, float* scale, float*) {
  const __m256i values = _mm256_broadcastsi128_si256(load16(kIq4Values));
  const float d = to_float(block.d);
  for (int g = 0; g < 8; ++g) {
    store32(strip[g].q[r], _mm256_shuffle_epi8(values, nibbles(block.qs + 16 * g)));
    const int low = block.scales_l[g / 2] >> (g % 2 * 4) & 15, high = block.scales_h >> (2 * g) & 3;
    scale[g] = d * static_cast<float>((low | high << 4) - 32);
  }
}

// Grid entries with signs: a byte is negated where its bit is set.
SGL_AVX2_INLINE __m256i with_signs(__m256i bytes, uint32_t bits) {
  const __m256i mask = mask_of(bits);
  return _mm256_sub_epi8(_mm256_xor_si256(bytes, mask), mask);
}

SGL_AVX2_INLINE __m256i join(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
  return _mm256_setr_epi64x(static_cast<int64_t>(a), static_cast<int64_t>(b), static_cast<int64_t>(c),
                            static_cast<int64_t>(d));
}

// even_signs() of each byte. What a shift brings in from the next byte stays above the bits that are used after it.
SGL_AVX2_INLINE uint32_t even_signs4(uint32_t sevens) {
  uint32_t parity = sevens ^ sevens >> 4;
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return sevens | (parity & 0x01010101) << 7;
}

// Four times 7 bits, from bit 0 up, in a byte each.
SGL_AVX2_INLINE uint32_t spread7(uint32_t bits) {
  return (bits & 0x7f) | (bits << 1 & 0x7f00) | (bits << 2 & 0x7f0000) | (bits << 3 & 0x7f000000);
}

// The 16 scales d * (0.5 + nibble) * 0.25 of IQ2_XS and IQ2_S.
SGL_AVX2_INLINE void put_nibble_scales(F16Bits d, const uint8_t* nibble_pairs, float* scale) {
  const __m128i both = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(nibble_pairs)), mask = _mm_set1_epi8(15);
  const __m128i scales = _mm_unpacklo_epi8(_mm_and_si128(both, mask), _mm_and_si128(_mm_srli_epi16(both, 4), mask));
  const __m256 quarter = _mm256_set1_ps(to_float(d) * 0.25f), half = _mm256_set1_ps(0.5f);
  _mm256_store_ps(scale, _mm256_mul_ps(quarter, _mm256_add_ps(half, to_floats(scales))));
  _mm256_store_ps(scale + 8, _mm256_mul_ps(quarter, _mm256_add_ps(half, to_floats(_mm_srli_si128(scales, 8)))));
}

SGL_AVX2_INLINE void put(const BlockIQ2_XXS& block, StripGroup* strip, int r, float* scale, float*) {
  const auto& grid = kIq2XxsGrid.entries;
  const float quarter = to_float(block.d) * 0.25f;
  for (int g = 0; g < 8; ++g) {
    const uint32_t indices = load_word(block.qs + 4 * g), signs = load_word(block.qs + 4 * g + 2);
    const __m256i bytes =
        join(grid[indices & 255], grid[indices >> 8 & 255], grid[indices >> 16 & 255], grid[indices >> 24]);
    store32(strip[g].q[r], with_signs(bytes, even_signs4(spread7(signs))));
    scale[g] = quarter * (0.5f + static_cast<float>(signs >> 28));
  }
}

SGL_AVX2_INLINE void put(const BlockIQ2_XS& block, StripGroup* strip, int r, float* scale, float*) {
  const auto& grid = kIq2XsGrid.entries;
  for (int g = 0; g < 8; ++g) {
    const uint16_t* e = block.qs + 4 * g;
    const __m256i bytes = join(grid[e[0] & 511], grid[e[1] & 511], grid[e[2] & 511], grid[e[3] & 511]);
    store32(strip[g].q[r],
            with_signs(bytes, even_signs4(e[0] >> 9 | e[1] >> 9 << 8 | e[2] >> 9 << 16 | e[3] >> 9 << 24)));
  }
  put_nibble_scales(block.d, block.scales, scale);
}

SGL_AVX2_INLINE void put(const BlockIQ2_S& block, StripGroup* strip, int r, float* scale, float*) {
  const auto& grid = kIq2SGrid.entries;
  for (int g = 0; g < 8; ++g) {
    const uint8_t* e = block.qs + 4 * g;
    const int high = block.qh[g];
    const __m256i bytes = join(grid[e[0] | (high << 8 & 0x300)], grid[e[1] | (high << 6 & 0x300)],
                               grid[e[2] | (high << 4 & 0x300)], grid[e[3] | (high << 2 & 0x300)]);
    store32(strip[g].q[r], with_signs(bytes, load_word(block.signs + 4 * g)));
  }
  put_nibble_scales(block.d, block.scales, scale);
}

SGL_AVX2_INLINE uint64_t pair(uint32_t low, uint32_t high) { return low | static_cast<uint64_t>(high) << 32; }

SGL_AVX2_INLINE void put(const BlockIQ3_XXS& block, StripGroup* strip, int r, float* scale, float*) {
  const auto& grid = kIq3XxsGrid.entries;
  const float half = to_float(block.d) * 0.5f;
  for (int g = 0; g < 8; ++g) {
    const uint8_t* e = block.qs + 8 * g;
    const uint32_t signs = load_word(block.signs_and_scales + 2 * g);
    const __m256i bytes = join(pair(grid[e[0]], grid[e[1]]), pair(grid[e[2]], grid[e[3]]), pair(grid[e[4]], grid[e[5]]),
                               pair(grid[e[6]], grid[e[7]]));
    store32(strip[g].q[r], with_signs(bytes, even_signs4(spread7(signs))));
    scale[g] = half * (0.5f + static_cast<float>(signs >> 28));
  }
}

SGL_AVX2_INLINE void put(const BlockIQ3_S& block, StripGroup* strip, int r, float* scale, float*) {
  const auto& grid = kIq3SGrid.entries;
  const float d = to_float(block.d);
  for (int g = 0; g < 8; ++g) {
    const uint8_t* e = block.qs + 8 * g;
    const int high = block.qh[g] << 8;
    uint64_t pairs[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      pairs[i] = pair(grid[e[2 * i] | (high >> (2 * i) & 256)], grid[e[2 * i + 1] | (high >> (2 * i + 1) & 256)]);
    }
    const __m256i bytes = join(pairs[0], pairs[1], pairs[2], pairs[3]);
    store32(strip[g].q[r], with_signs(bytes, load_word(block.signs + 4 * g)));
    scale[g] = d * static_cast<float>(1 + 2 * (block.scales[g / 2] >> (g % 2 * 4) & 15));
  }
}

// 8 * grid +- 1
SGL_AVX2_INLINE __m256i with_delta(__m256i grid, __m256i delta) {
  const __m256i two = _mm256_add_epi8(grid, grid), four = _mm256_add_epi8(two, two);
  return _mm256_add_epi8(_mm256_add_epi8(four, four), delta);
}

SGL_AVX2_INLINE void put(const BlockIQ1_S& block, StripGroup* strip, int r, float* scale, float*) {
  const auto& grid = kIq1SGrid.entries;
  const float eighth = to_float(block.d) * 0.125f;
  for (int g = 0; g < 8; ++g) {
    const uint8_t* e = block.qs + 4 * g;
    const int high = block.qh[g];
    const __m256i bytes = join(grid[e[0] | (high << 8 & 0x700)], grid[e[1] | (high << 5 & 0x700)],
                               grid[e[2] | (high << 2 & 0x700)], grid[e[3] | (high >> 1 & 0x700)]);
    store32(strip[g].q[r], with_delta(bytes, _mm256_set1_epi8((high & 0x8000) != 0 ? -1 : 1)));
    scale[g] = eighth * static_cast<float>(2 * (high >> 12 & 7) + 1);
  }
}

SGL_AVX2_INLINE void put(const BlockIQ1_M& block, StripGroup* strip, int r, float* scale, float*) {
  const auto& grid = kIq1SGrid.entries;
  uint32_t d_bits = 0;
  for (int w = 0; w < 4; ++w) d_bits |= static_cast<uint32_t>(block.scales[w] >> 12) << (4 * w);
  const float eighth = to_float(static_cast<F16Bits>(d_bits)) * 0.125f;
  for (int g = 0; g < 8; ++g) {
    const uint8_t* e = block.qs + 4 * g;
    const int high = block.qh[2 * g] | block.qh[2 * g + 1] << 8;  // a nibble for each 8 elements
    const __m256i bytes = join(grid[e[0] | (high << 8 & 0x700)], grid[e[1] | (high << 4 & 0x700)],
                               grid[e[2] | (high & 0x700)], grid[e[3] | (high >> 4 & 0x700)]);
    // Bit 3 of a nibble, spread over the 8 bytes of its 64-bit lane, is delta's sign: -1 or 1.
    const __m256i signs = _mm256_and_si256(_mm256_set1_epi64x(high), _mm256_setr_epi64x(8, 0x80, 0x800, 0x8000));
    const __m256i minus = _mm256_cmpgt_epi64(signs, _mm256_setzero_si256());
    store32(strip[g].q[r], with_delta(bytes, _mm256_or_si256(minus, _mm256_set1_epi8(1))));
    for (int h = 0; h < 2; ++h) {
      scale[2 * g + h] = eighth * static_cast<float>(2 * (block.scales[g / 2] >> ((2 * g + h) % 4 * 3) & 7) + 1);
    }
  }
}

}  // namespace
}  // namespace sgl_kernel::ggml

#endif
