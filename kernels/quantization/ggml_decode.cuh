// One group of 32 weights out of a ggml block: the part of the three kernels that knows the formats (ggml_blocks.h).
//
// Every format says value = scale * quant + offset, so that
//   dequantization is two rounded operations (one where there is no offset), in the order of the gguf package;
//   a product with activations d * x8 is d * (scale * sum(quant * x8) + offset * sum(x8)), both sums exact integers.
#pragma once

#include "kernels/quantization/ggml_block_bytes.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kGroupSize = 32;

// The first 16 elements use scale[0] and offset[0], the others scale[1] and offset[1]; a format with one scale a group
// sets [0] alone, one without offsets leaves them.
struct WeightGroup {
  uint32_t quants[8];  // element i is the signed byte i % 4 of word i / 4
  float scale[2];
  float offset[2];
};

// What a kernel asks of a format:
//   Block, kGroupsPerBlock (1 or 8), kScales (scales in a group: 1 or 2), kHasOffset,
//   decode(block, g, group): group g of a block (0 in a block of 32 elements);
//   set_scales(block, g, group): of that the scales and offsets;
//   words(block, g, i): of that quants[i] and quants[i + 4].
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
    set_scales(block, 0, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int, WeightGroup& group) {
    group.scale[0] = half_bits_to_float(block.d);
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int, int i) {
    const uint32_t packed = load_word(block.qs + 4 * i);
    return make_uint2(subtract_from_bytes<8>(packed & 0x0f0f0f0f), subtract_from_bytes<8>(packed >> 4 & 0x0f0f0f0f));
  }
};

template <>
struct Format<ggml::kQ4_1> : FormatTraits<ggml::kQ4_1, ggml::BlockQ4_1, 1, true> {
  static __device__ __forceinline__ void decode(const Block& block, int, WeightGroup& group) {
    uint32_t packed[4];
    load_words(block.qs, packed);
    split_nibbles(packed, group.quants);
    set_scales(block, 0, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int, WeightGroup& group) {
    group.scale[0] = half_bits_to_float(block.d);
    group.offset[0] = half_bits_to_float(block.m);
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int, int i) {
    const uint32_t packed = load_word(block.qs + 4 * i);
    return make_uint2(packed & 0x0f0f0f0f, packed >> 4 & 0x0f0f0f0f);
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
    set_scales(block, 0, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int, WeightGroup& group) {
    group.scale[0] = half_bits_to_float(block.d);
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int, int i) {
    const uint32_t packed = load_word(block.qs + 4 * i), high = load_word(block.qh) >> (4 * i);
    const uint32_t low_half = packed & 0x0f0f0f0f | spread_bits(high) << 4;
    const uint32_t high_half = packed >> 4 & 0x0f0f0f0f | spread_bits(high >> 16) << 4;
    return make_uint2(subtract_from_bytes<16>(low_half), subtract_from_bytes<16>(high_half));
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
    set_scales(block, 0, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int, WeightGroup& group) {
    group.scale[0] = half_bits_to_float(block.d);
    group.offset[0] = half_bits_to_float(block.m);
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int, int i) {
    const uint32_t packed = load_word(block.qs + 4 * i), high = load_word(block.qh) >> (4 * i);
    const uint32_t low_half = packed & 0x0f0f0f0f | spread_bits(high) << 4;
    const uint32_t high_half = packed >> 4 & 0x0f0f0f0f | spread_bits(high >> 16) << 4;
    return make_uint2(low_half, high_half);
  }
};

template <>
struct Format<ggml::kQ8_0> : FormatTraits<ggml::kQ8_0, ggml::BlockQ8_0, 1, false> {
  static __device__ __forceinline__ void decode(const Block& block, int, WeightGroup& group) {
    load_words(block.qs, group.quants);
    set_scales(block, 0, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int, WeightGroup& group) {
    group.scale[0] = half_bits_to_float(block.d);
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int, int i) {
    return make_uint2(load_word(block.qs + 4 * i), load_word(block.qs + 4 * i + 16));
  }
};

template <>
struct Format<ggml::kIQ4_NL> : FormatTraits<ggml::kIQ4_NL, ggml::BlockIQ4_NL, 1, false> {
  static __device__ __forceinline__ void decode(const Block& block, int, WeightGroup& group) {
    uint32_t packed[4];
    load_words(block.qs, packed);
    look_up_nibbles(packed, group.quants);
    set_scales(block, 0, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int, WeightGroup& group) {
    group.scale[0] = half_bits_to_float(block.d);
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int, int i) {
    return look_up_nibbles(load_word(block.qs + 4 * i));
  }
};

template <>
struct Format<ggml::kQ2_K> : FormatTraits<ggml::kQ2_K, ggml::BlockQ2_K, 2, true> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
    load_words(block.qs + 32 * (g / 4), group.quants);
#pragma unroll
    for (int i = 0; i < 8; ++i) group.quants[i] = group.quants[i] >> (2 * (g % 4)) & 0x03030303;
    set_scales(block, g, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int g, WeightGroup& group) {
    const float d = half_bits_to_float(block.d), dmin = half_bits_to_float(block.dmin);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int packed = block.scales[2 * g + i];
      group.scale[i] = __fmul_rn(d, static_cast<float>(packed & 15));
      group.offset[i] = -__fmul_rn(dmin, static_cast<float>(packed >> 4));
    }
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int g, int i) {
    const auto word = [&](int w) { return load_word(block.qs + 32 * (g / 4) + 4 * w) >> (2 * (g % 4)) & 0x03030303; };
    return make_uint2(word(i), word(i + 4));
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
      group.quants[i] = subtract_from_bytes<4>(low | move_bits(high[i], g, 2) & 0x04040404);
    }
    set_scales(block, g, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int g, WeightGroup& group) {
    const float d = half_bits_to_float(block.d);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int h = 2 * g + i;
      const int low = block.scales[h % 8] >> (h / 8 * 4) & 15, top = block.scales[8 + h % 4] >> (h / 4 * 2) & 3;
      group.scale[i] = __fmul_rn(d, static_cast<float>((low | top << 4) - 32));
    }
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int g, int i) {
    const auto word = [&](int w) {
      const uint32_t low = load_word(block.qs + 32 * (g / 4) + 4 * w) >> (2 * (g % 4)) & 0x03030303;
      return subtract_from_bytes<4>(low | move_bits(load_word(block.hmask + 4 * w), g, 2) & 0x04040404);
    };
    return make_uint2(word(i), word(i + 4));
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
    set_scales(block, g, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int g, WeightGroup& group) {
    decode_scale_and_min(block, g, group);
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int g, int i) {
    const auto word = [&](int w) { return load_word(block.qs + 32 * (g / 2) + 4 * w) >> (4 * (g % 2)) & 0x0f0f0f0f; };
    return make_uint2(word(i), word(i + 4));
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
      group.quants[i] = low | move_bits(high[i], g, 4) & 0x10101010;
    }
    set_scales(block, g, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int g, WeightGroup& group) {
    decode_scale_and_min(block, g, group);
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int g, int i) {
    const auto word = [&](int w) {
      const uint32_t low = load_word(block.qs + 32 * (g / 2) + 4 * w) >> (4 * (g % 2)) & 0x0f0f0f0f;
      return low | move_bits(load_word(block.qh + 4 * w), g, 4) & 0x10101010;
    };
    return make_uint2(word(i), word(i + 4));
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
      group.quants[i] = subtract_from_bytes<32>(low | move_bits(high[i], 2 * quarter, 4) & 0x30303030);
    }
    set_scales(block, g, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int g, WeightGroup& group) {
    const float d = half_bits_to_float(block.d);
    group.scale[0] = __fmul_rn(d, static_cast<float>(block.scales[2 * g]));
    group.scale[1] = __fmul_rn(d, static_cast<float>(block.scales[2 * g + 1]));
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int g, int i) {
    const auto word = [&](int w) {
      const uint8_t* const ql = block.ql + 64 * (g / 4) + 32 * (g % 2);
      const uint32_t low = load_word(ql + 4 * w) >> (4 * (g % 4 / 2)) & 0x0f0f0f0f;
      const uint32_t high = move_bits(load_word(block.qh + 32 * (g / 4) + 4 * w), 2 * (g % 4), 4) & 0x30303030;
      return subtract_from_bytes<32>(low | high);
    };
    return make_uint2(word(i), word(i + 4));
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
    set_scales(block, g, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int g, WeightGroup& group) {
    const float s = 0.5f + static_cast<float>(block.qs[4 * g + 3] >> 12);
    group.scale[0] = __fmul_rn(__fmul_rn(half_bits_to_float(block.d), s), 0.25f);
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int g, int i) {
    const auto word = [&](int w) {
      const int e = w / 2;
      const uint32_t index = load_word(block.qs + 4 * g) >> (8 * e) & 255;
      const uint32_t signs = ggml::even_signs(load_word(block.qs + 4 * g + 2) >> (7 * e) & 127);
      return apply_signs(grid_word(iq2_xxs_grid, index, w), signs >> (4 * (w % 2)));
    };
    return make_uint2(word(i), word(i + 4));
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
    set_scales(block, g, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int g, WeightGroup& group) {
    decode_iq2_scales(block.d, block.scales[g], group);
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int g, int i) {
    const auto word = [&](int w) {
      const uint32_t packed = block.qs[4 * g + w / 2];
      return apply_signs(grid_word(iq2_xs_grid, packed & 511, w), ggml::even_signs(packed >> 9) >> (4 * (w % 2)));
    };
    return make_uint2(word(i), word(i + 4));
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
    set_scales(block, g, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int g, WeightGroup& group) {
    decode_iq2_scales(block.d, block.scales[g], group);
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int g, int i) {
    const auto word = [&](int w) {
      const int e = w / 2;
      const uint32_t index = block.qs[4 * g + e] | (block.qh[g] >> (2 * e) & 3) << 8;
      return apply_signs(grid_word(iq2_s_grid, index, w), block.signs[4 * g + e] >> (4 * (w % 2)));
    };
    return make_uint2(word(i), word(i + 4));
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
    set_scales(block, g, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int g, WeightGroup& group) {
    const float s = 0.5f + static_cast<float>(block.signs_and_scales[2 * g + 1] >> 12);
    group.scale[0] = __fmul_rn(__fmul_rn(half_bits_to_float(block.d), s), 0.5f);
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int g, int i) {
    const auto word = [&](int w) {
      const uint32_t packed = load_word(block.signs_and_scales + 2 * g);
      const uint32_t signs = ggml::even_signs(packed >> (7 * (w / 2)) & 127) >> (4 * (w % 2));
      return apply_signs(iq3_xxs_grid.entries[block.qs[8 * g + w]], signs);
    };
    return make_uint2(word(i), word(i + 4));
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
    set_scales(block, g, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int g, WeightGroup& group) {
    const int s = block.scales[g / 2] >> (g % 2 * 4) & 15;
    group.scale[0] = __fmul_rn(half_bits_to_float(block.d), static_cast<float>(1 + 2 * s));
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int g, int i) {
    const auto word = [&](int w) {
      const uint32_t index = block.qs[8 * g + w] | (block.qh[g] >> w & 1) << 8;
      return apply_signs(iq3_s_grid.entries[index], block.signs[4 * g + w / 2] >> (4 * (w % 2)));
    };
    return make_uint2(word(i), word(i + 4));
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
    set_scales(block, g, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int g, WeightGroup& group) {
    const float s = static_cast<float>(2 * (block.qh[g] >> 12 & 7) + 1);
    group.scale[0] = __fmul_rn(__fmul_rn(half_bits_to_float(block.d), s), 0.125f);
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int g, int i) {
    const auto word = [&](int w) {
      const int e = w / 2;
      const uint32_t high = block.qh[g], index = block.qs[4 * g + e] | (high >> (3 * e) & 7) << 8;
      return iq1_word(grid_word(iq1_s_grid, index, w), high >> 15 != 0);
    };
    return make_uint2(word(i), word(i + 4));
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
    set_scales(block, g, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int g, WeightGroup& group) {
    const float d = half_bits_to_float(block.scales[0] >> 12 | (block.scales[1] >> 12) << 4 |
                                       (block.scales[2] >> 12) << 8 | (block.scales[3] >> 12) << 12);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int h = 2 * g + i, s = block.scales[h / 4] >> (3 * (h % 4)) & 7;
      group.scale[i] = __fmul_rn(__fmul_rn(d, static_cast<float>(2 * s + 1)), 0.125f);
    }
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int g, int i) {
    const auto word = [&](int w) {
      const int e = w / 2;
      const uint32_t nibble = block.qh[2 * g + e / 2] >> (4 * (e % 2)) & 15;
      return iq1_word(grid_word(iq1_s_grid, block.qs[4 * g + e] | (nibble & 7) << 8, w), nibble >> 3 != 0);
    };
    return make_uint2(word(i), word(i + 4));
  }
};

template <>
struct Format<ggml::kIQ4_XS> : FormatTraits<ggml::kIQ4_XS, ggml::BlockIQ4_XS, 1, false> {
  static __device__ __forceinline__ void decode(const Block& block, int g, WeightGroup& group) {
    uint32_t packed[4];
    load_words(block.qs + 16 * g, packed);
    look_up_nibbles(packed, group.quants);
    set_scales(block, g, group);
  }
  static __device__ __forceinline__ void set_scales(const Block& block, int g, WeightGroup& group) {
    const int low = block.scales_l[g / 2] >> (g % 2 * 4) & 15, top = block.scales_h >> (2 * g) & 3;
    group.scale[0] = __fmul_rn(half_bits_to_float(block.d), static_cast<float>((low | top << 4) - 32));
  }
  static __device__ __forceinline__ uint2 words(const Block& block, int g, int i) {
    return look_up_nibbles(load_word(block.qs + 16 * g + 4 * i));
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
