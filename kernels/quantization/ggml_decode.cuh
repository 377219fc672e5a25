// One group of 32 weights out of a ggml block: the part of the three kernels that knows the formats (ggml_blocks.h).
//
// Every format says value = scale * quant + offset, so that
//   dequantization is two rounded operations (one where there is no offset), in the order of the gguf package;
//   a product with activations d * x8 is d * (scale * sum(quant * x8) + offset * sum(x8)), both sums exact integers.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/quantization/ggml_blocks.h"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kGroupSize = 32;

// The first 16 elements use scale[0] and offset[0], the others scale[1] and offset[1]; a format with one scale a group
// sets [0] alone, one without offsets leaves them.
struct WeightGroup {
  uint32_t quants[8];  // element i is the signed byte i % 4 of word i / 4
  float scale[2];
  float offset[2];
};

// kWords words at an even address: blocks are aligned to no more. Reads nothing beyond them.
template <int kWords>
__device__ __forceinline__ void load_words(const void* source, uint32_t (&words)[kWords]) {
  const uint16_t* halves = static_cast<const uint16_t*>(source);
  uint32_t previous = static_cast<uint32_t>(halves[0]) << 16;
  // The aligned words behind the first two bytes; if `source` itself is aligned they are the result.
  const uint64_t address = reinterpret_cast<uint64_t>(source);
  const uint32_t* aligned = reinterpret_cast<const uint32_t*>((address + 2) & ~uint64_t{3});
  const uint32_t shift = (address & 2) != 0 ? 16 : 32;
#pragma unroll
  for (int i = 0; i + 1 < kWords; ++i) {
    const uint32_t word = aligned[i];
    words[i] = __funnelshift_rc(previous, word, shift);
    previous = word;
  }
  words[kWords - 1] = halves[2 * kWords - 2] | static_cast<uint32_t>(halves[2 * kWords - 1]) << 16;
}

__device__ __forceinline__ float half_bits_to_float(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
}

// Each byte minus kAmount, as a signed byte, without a carry into the next: a byte is less than 128 + kAmount.
template <int kAmount>
__device__ __forceinline__ uint32_t subtract_from_bytes(uint32_t bytes) {
  return (bytes + 0x01010101u * (0x80 - kAmount)) ^ 0x80808080u;
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

// As split_nibbles(), each nibble replaced by its entry of kIq4Values.
__device__ __forceinline__ void look_up_nibbles(const uint32_t (&packed)[4], uint32_t (&quants)[8]) {
  constexpr auto word = [](int first) {
    uint32_t bytes = 0;
    for (int i = 0; i < 4; ++i)
      bytes |= static_cast<uint32_t>(static_cast<uint8_t>(ggml::kIq4Values[first + i])) << 8 * i;
    return bytes;
  };
  constexpr uint32_t table[4] = {word(0), word(4), word(8), word(12)};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t pair[2];  // bytes: the low and high nibble of byte 0, of byte 1; then of bytes 2 and 3
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint32_t nibbles = packed[i] >> (16 * j) & 0xffff;
      const uint32_t lower = __byte_perm(table[0], table[1], nibbles & 0x7777);
      const uint32_t upper = __byte_perm(table[2], table[3], nibbles & 0x7777);
      pair[j] = __byte_perm(lower, upper, 0x3210 | (nibbles & 0x8888) >> 1);
    }
    quants[i] = __byte_perm(pair[0], pair[1], 0x6420);
    quants[4 + i] = __byte_perm(pair[0], pair[1], 0x7531);
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
__device__ __forceinline__ void set_iq1_eight(uint32_t (&quants)[8], int e, uint32_t index, bool negative) {
  const uint64_t entry = iq1_s_grid.entries[index];
  const uint32_t delta = negative ? 0u - 0x01010101u : 0x01010101u;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const uint32_t eightfold = static_cast<uint32_t>(entry >> (32 * j)) << 3 & 0xf8f8f8f8;
    quants[2 * e + j] = ((eightfold ^ 0x80808080) + delta) ^ 0x80808080;
  }
}

// What a kernel asks of a format:
//   Block, kGroupsPerBlock (1 or 8), kScales (scales in a group: 1 or 2), kHasOffset,
//   decode(block, g, group): group g of a block (0 in a block of 32 elements).
template <int64_t kType>
struct Format;

template <int64_t kType, class BlockT, int kScaleCount, bool kOffset>
struct FormatTraits {
  using Block = BlockT;
  static constexpr int kGroupsPerBlock = ggml::type_info(kType).block_size / kGroupSize;
  static constexpr int kScales = kScaleCount;
  static constexpr bool kHasOffset = kOffset;
};

template <>
struct Format<ggml::kQ4_0> : FormatTraits<ggml::kQ4_0, ggml::BlockQ4_0, 1, false> {
  static __device__ __forceinline__ void decode(const Block& block, int, WeightGroup& group) {
    uint32_t packed[4];
    load_words(block.qs, packed);
    split_nibbles(packed, group.quants);
#pragma unroll
    for (int i = 0; i < 8; ++i) group.quants[i] = subtract_from_bytes<8>(group.quants[i]);
    group.scale[0] = half_bits_to_float(block.d);
  }
};

template <>
struct Format<ggml::kQ4_1> : FormatTraits<ggml::kQ4_1, ggml::BlockQ4_1, 1, true> {
  static __device__ __forceinline__ void decode(const Block& block, int, WeightGroup& group) {
    uint32_t packed[4];
    load_words(block.qs, packed);
    split_nibbles(packed, group.quants);
    group.scale[0] = half_bits_to_float(block.d);
    group.offset[0] = half_bits_to_float(block.m);
  }
};

template <>
struct Format<ggml::kQ5_0> : FormatTraits<ggml::kQ5_0, ggml::BlockQ5_0, 1, false> {
  static __device__ __forceinline__ void decode(const Block& block, int, WeightGroup& group) {
    uint32_t packed[4], high[1];
    load_words(block.qs, packed);
    load_words(block.qh, high);
    split_nibbles(packed, group.quants);
    add_fifth_bits(high[0], group.quants);
#pragma unroll
    for (int i = 0; i < 8; ++i) group.quants[i] = subtract_from_bytes<16>(group.quants[i]);
    group.scale[0] = half_bits_to_float(block.d);
  }
};

template <>
struct Format<ggml::kQ5_1> : FormatTraits<ggml::kQ5_1, ggml::BlockQ5_1, 1, true> {
  static __device__ __forceinline__ void decode(const Block& block, int, WeightGroup& group) {
    uint32_t packed[4], high[1];
    load_words(block.qs, packed);
    load_words(block.qh, high);
    split_nibbles(packed, group.quants);
    add_fifth_bits(high[0], group.quants);
    group.scale[0] = half_bits_to_float(block.d);
    group.offset[0] = half_bits_to_float(block.m);
  }
};

template <>
struct Format<ggml::kQ8_0> : FormatTraits<ggml::kQ8_0, ggml::BlockQ8_0, 1, false> {
  static __device__ __forceinline__ void decode(const Block& block, int, WeightGroup& group) {
    load_words(block.qs, group.quants);
    group.scale[0] = half_bits_to_float(block.d);
  }
};

template <>
struct Format<ggml::kIQ4_NL> : FormatTraits<ggml::kIQ4_NL, ggml::BlockIQ4_NL, 1, false> {
  static __device__ __forceinline__ void decode(const Block& block, int, WeightGroup& group) {
    uint32_t packed[4];
    load_words(block.qs, packed);
    look_up_nibbles(packed, group.quants);
    group.scale[0] = half_bits_to_float(block.d);
  }
};

template <>
struct Format<ggml::kQ2_K> : FormatTraits<ggml::kQ2_K, ggml::BlockQ2_K, 2, true> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
    load_words(block.qs + 32 * (g / 4), group.quants);
#pragma unroll
    for (int i = 0; i < 8; ++i) group.quants[i] = group.quants[i] >> (2 * (g % 4)) & 0x03030303;
    const float d = half_bits_to_float(block.d), dmin = half_bits_to_float(block.dmin);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int packed = block.scales[2 * g + i];
      group.scale[i] = __fmul_rn(d, static_cast<float>(packed & 15));
      group.offset[i] = -__fmul_rn(dmin, static_cast<float>(packed >> 4));
    }
  }
};

template <>
struct Format<ggml::kQ3_K> : FormatTraits<ggml::kQ3_K, ggml::BlockQ3_K, 2, false> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
    uint32_t high[8];
    load_words(block.qs + 32 * (g / 4), group.quants);
    load_words(block.hmask, high);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t low = group.quants[i] >> (2 * (g % 4)) & 0x03030303;
      group.quants[i] = subtract_from_bytes<4>(low | (high[i] >> g & 0x01010101) << 2);
    }
    const float d = half_bits_to_float(block.d);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int h = 2 * g + i;
      const int low = block.scales[h % 8] >> (h / 8 * 4) & 15, top = block.scales[8 + h % 4] >> (h / 4 * 2) & 3;
      group.scale[i] = __fmul_rn(d, static_cast<float>((low | top << 4) - 32));
    }
  }
};

// Q4_K and Q5_K
template <class Block>
__device__ __forceinline__ void decode_scale_and_min(const Block& block, int g, WeightGroup& group) {
  const ggml::ScaleAndMin packed = ggml::scale_and_min(block.scales, g);
  group.scale[0] = __fmul_rn(half_bits_to_float(block.d), static_cast<float>(packed.scale));
  group.offset[0] = -__fmul_rn(half_bits_to_float(block.dmin), static_cast<float>(packed.min));
}

template <>
struct Format<ggml::kQ4_K> : FormatTraits<ggml::kQ4_K, ggml::BlockQ4_K, 1, true> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
    load_words(block.qs + 32 * (g / 2), group.quants);
#pragma unroll
    for (int i = 0; i < 8; ++i) group.quants[i] = group.quants[i] >> (4 * (g % 2)) & 0x0f0f0f0f;
    decode_scale_and_min(block, g, group);
  }
};

template <>
struct Format<ggml::kQ5_K> : FormatTraits<ggml::kQ5_K, ggml::BlockQ5_K, 1, true> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
    uint32_t high[8];
    load_words(block.qs + 32 * (g / 2), group.quants);
    load_words(block.qh, high);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t low = group.quants[i] >> (4 * (g % 2)) & 0x0f0f0f0f;
      group.quants[i] = low | (high[i] >> g & 0x01010101) << 4;
    }
    decode_scale_and_min(block, g, group);
  }
};

template <>
struct Format<ggml::kQ6_K> : FormatTraits<ggml::kQ6_K, ggml::BlockQ6_K, 2, false> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
    const int half = g / 4, quarter = g % 4;
    uint32_t high[8];
    load_words(block.ql + 64 * half + 32 * (quarter % 2), group.quants);
    load_words(block.qh + 32 * half, high);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t low = group.quants[i] >> (4 * (quarter / 2)) & 0x0f0f0f0f;
      group.quants[i] = subtract_from_bytes<32>(low | (high[i] >> (2 * quarter) & 0x03030303) << 4);
    }
    const float d = half_bits_to_float(block.d);
    group.scale[0] = __fmul_rn(d, static_cast<float>(block.scales[2 * g]));
    group.scale[1] = __fmul_rn(d, static_cast<float>(block.scales[2 * g + 1]));
  }
};

template <>
struct Format<ggml::kIQ2_XXS> : FormatTraits<ggml::kIQ2_XXS, ggml::BlockIQ2_XXS, 1, false> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
    uint32_t packed[2];  // indices; signs and scale
    load_words(block.qs + 4 * g, packed);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      set_signed_eight(group.quants, e, iq2_xxs_grid.entries[packed[0] >> (8 * e) & 255],
                       ggml::even_signs(packed[1] >> (7 * e) & 127));
    }
    const float s = 0.5f + static_cast<float>(packed[1] >> 28);
    group.scale[0] = __fmul_rn(__fmul_rn(half_bits_to_float(block.d), s), 0.25f);
  }
};

// IQ2_XS and IQ2_S
__device__ __forceinline__ void decode_iq2_scales(uint32_t d, uint32_t nibbles, WeightGroup& group) {
  const float base = half_bits_to_float(d);
  group.scale[0] = __fmul_rn(__fmul_rn(base, 0.5f + static_cast<float>(nibbles & 15)), 0.25f);
  group.scale[1] = __fmul_rn(__fmul_rn(base, 0.5f + static_cast<float>(nibbles >> 4)), 0.25f);
}

template <>
struct Format<ggml::kIQ2_XS> : FormatTraits<ggml::kIQ2_XS, ggml::BlockIQ2_XS, 2, false> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const uint32_t packed = block.qs[4 * g + e];
      set_signed_eight(group.quants, e, iq2_xs_grid.entries[packed & 511], ggml::even_signs(packed >> 9));
    }
    decode_iq2_scales(block.d, block.scales[g], group);
  }
};

template <>
struct Format<ggml::kIQ2_S> : FormatTraits<ggml::kIQ2_S, ggml::BlockIQ2_S, 2, false> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
    const uint32_t high = block.qh[g];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const uint32_t index = block.qs[4 * g + e] | (high >> (2 * e) & 3) << 8;
      set_signed_eight(group.quants, e, iq2_s_grid.entries[index], block.signs[4 * g + e]);
    }
    decode_iq2_scales(block.d, block.scales[g], group);
  }
};

template <>
struct Format<ggml::kIQ3_XXS> : FormatTraits<ggml::kIQ3_XXS, ggml::BlockIQ3_XXS, 1, false> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
    uint32_t packed[1];  // signs and scale
    load_words(block.signs_and_scales + 2 * g, packed);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t signs = ggml::even_signs(packed[0] >> (7 * (i / 2)) & 127) >> (4 * (i % 2));
      group.quants[i] = apply_signs(iq3_xxs_grid.entries[block.qs[8 * g + i]], signs);
    }
    const float s = 0.5f + static_cast<float>(packed[0] >> 28);
    group.scale[0] = __fmul_rn(__fmul_rn(half_bits_to_float(block.d), s), 0.5f);
  }
};

template <>
struct Format<ggml::kIQ3_S> : FormatTraits<ggml::kIQ3_S, ggml::BlockIQ3_S, 1, false> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
    const uint32_t high = block.qh[g];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t index = block.qs[8 * g + i] | (high >> i & 1) << 8;
      const uint32_t signs = block.signs[4 * g + i / 2] >> (4 * (i % 2));
      group.quants[i] = apply_signs(iq3_s_grid.entries[index], signs);
    }
    const int s = block.scales[g / 2] >> (g % 2 * 4) & 15;
    group.scale[0] = __fmul_rn(half_bits_to_float(block.d), static_cast<float>(1 + 2 * s));
  }
};

template <>
struct Format<ggml::kIQ1_S> : FormatTraits<ggml::kIQ1_S, ggml::BlockIQ1_S, 1, false> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
    const uint32_t high = block.qh[g];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      set_iq1_eight(group.quants, e, block.qs[4 * g + e] | (high >> (3 * e) & 7) << 8, high >> 15 != 0);
    }
    const float s = static_cast<float>(2 * (high >> 12 & 7) + 1);
    group.scale[0] = __fmul_rn(__fmul_rn(half_bits_to_float(block.d), s), 0.125f);
  }
};

template <>
struct Format<ggml::kIQ1_M> : FormatTraits<ggml::kIQ1_M, ggml::BlockIQ1_M, 2, false> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const uint32_t nibble = block.qh[2 * g + e / 2] >> (4 * (e % 2)) & 15;
      set_iq1_eight(group.quants, e, block.qs[4 * g + e] | (nibble & 7) << 8, nibble >> 3 != 0);
    }
    const float d = half_bits_to_float(block.scales[0] >> 12 | (block.scales[1] >> 12) << 4 |
                                       (block.scales[2] >> 12) << 8 | (block.scales[3] >> 12) << 12);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int h = 2 * g + i, s = block.scales[h / 4] >> (3 * (h % 4)) & 7;
      group.scale[i] = __fmul_rn(__fmul_rn(d, static_cast<float>(2 * s + 1)), 0.125f);
    }
  }
};

template <>
struct Format<ggml::kIQ4_XS> : FormatTraits<ggml::kIQ4_XS, ggml::BlockIQ4_XS, 1, false> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
    uint32_t packed[4];
    load_words(block.qs + 16 * g, packed);
    look_up_nibbles(packed, group.quants);
    const int low = block.scales_l[g / 2] >> (g % 2 * 4) & 15, top = block.scales_h >> (2 * g) & 3;
    group.scale[0] = __fmul_rn(half_bits_to_float(block.d), static_cast<float>((low | top << 4) - 32));
  }
};

}  // namespace sgl_kernel::SGL_TARGET

// From a run-time type to a format: SGL_SWITCH_GGML_TYPE(type, F, return run<F>(…)); the caller has checked the type.
#define SGL_GGML_CASE(Type, Alias, ...) \
  case ::sgl_kernel::ggml::Type: {      \
    using Alias = Format<ggml::Type>;   \
    __VA_ARGS__;                        \
  } break;
#define SGL_SWITCH_GGML_TYPE(type, Alias, ...)  \
  switch (type) {                               \
    SGL_GGML_CASE(kQ4_0, Alias, __VA_ARGS__)    \
    SGL_GGML_CASE(kQ4_1, Alias, __VA_ARGS__)    \
    SGL_GGML_CASE(kQ5_0, Alias, __VA_ARGS__)    \
    SGL_GGML_CASE(kQ5_1, Alias, __VA_ARGS__)    \
    SGL_GGML_CASE(kQ8_0, Alias, __VA_ARGS__)    \
    SGL_GGML_CASE(kQ2_K, Alias, __VA_ARGS__)    \
    SGL_GGML_CASE(kQ3_K, Alias, __VA_ARGS__)    \
    SGL_GGML_CASE(kQ4_K, Alias, __VA_ARGS__)    \
    SGL_GGML_CASE(kQ5_K, Alias, __VA_ARGS__)    \
    SGL_GGML_CASE(kQ6_K, Alias, __VA_ARGS__)    \
    SGL_GGML_CASE(kIQ2_XXS, Alias, __VA_ARGS__) \
    SGL_GGML_CASE(kIQ2_XS, Alias, __VA_ARGS__)  \
    SGL_GGML_CASE(kIQ2_S, Alias, __VA_ARGS__)   \
    SGL_GGML_CASE(kIQ3_XXS, Alias, __VA_ARGS__) \
    SGL_GGML_CASE(kIQ3_S, Alias, __VA_ARGS__)   \
    SGL_GGML_CASE(kIQ1_S, Alias, __VA_ARGS__)   \
    SGL_GGML_CASE(kIQ1_M, Alias, __VA_ARGS__)   \
    SGL_GGML_CASE(kIQ4_NL, Alias, __VA_ARGS__)  \
    SGL_GGML_CASE(kIQ4_XS, Alias, __VA_ARGS__)  \
  }
