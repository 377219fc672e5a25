#include "kernels/base/float_types.h"
#include "kernels/quantization/ggml_decode.h"

namespace sgl_kernel::ggml {
namespace {

float to_float(F16Bits bits) {
  Half half;
  half.bits = bits;
  return half;
}

uint32_t word(const uint16_t* halves) { return halves[0] | static_cast<uint32_t>(halves[1]) << 16; }

int nibble(const uint8_t* bytes, int i) { return bytes[i / 2] >> (i % 2 * 4) & 15; }

// q[j] = sign j of `signs` (a one is minus) times byte j of `entry`, for j < kCount.
template <int kCount, class Entry>
void put_signed(int8_t* q, Entry entry, uint32_t signs) {
  for (int j = 0; j < kCount; ++j) {
    const int magnitude = static_cast<int8_t>(entry >> (8 * j));
    q[j] = static_cast<int8_t>((signs >> j & 1) != 0 ? -magnitude : magnitude);
  }
}

// q[j] = 8 * grid[j] +- 1: an entry of IQ1 with its delta of an eighth.
void put_with_delta(int8_t* q, uint64_t entry, bool minus) {
  for (int j = 0; j < 8; ++j) {
    q[j] = static_cast<int8_t>(8 * static_cast<int8_t>(entry >> (8 * j)) + (minus ? -1 : 1));
  }
}

void fill2(float* values, float value) { values[0] = values[1] = value; }

}  // namespace

void decode(const BlockQ4_0& block, int8_t* q, float* scale, float*) {
  fill2(scale, to_float(block.d));
  for (int j = 0; j < 16; ++j) {
    q[j] = static_cast<int8_t>((block.qs[j] & 15) - 8);
    q[j + 16] = static_cast<int8_t>((block.qs[j] >> 4) - 8);
  }
}

void decode(const BlockQ4_1& block, int8_t* q, float* scale, float* offset) {
  fill2(scale, to_float(block.d));
  fill2(offset, to_float(block.m));
  for (int j = 0; j < 16; ++j) {
    q[j] = block.qs[j] & 15;
    q[j + 16] = block.qs[j] >> 4;
  }
}

void decode(const BlockQ5_0& block, int8_t* q, float* scale, float*) {
  fill2(scale, to_float(block.d));
  for (int j = 0; j < 16; ++j) {
    const int low_bit = block.qh[j / 8] >> j % 8 & 1, high_bit = block.qh[2 + j / 8] >> j % 8 & 1;
    q[j] = static_cast<int8_t>(((block.qs[j] & 15) | low_bit << 4) - 16);
    q[j + 16] = static_cast<int8_t>((block.qs[j] >> 4 | high_bit << 4) - 16);
  }
}

void decode(const BlockQ5_1& block, int8_t* q, float* scale, float* offset) {
  fill2(scale, to_float(block.d));
  fill2(offset, to_float(block.m));
  for (int j = 0; j < 16; ++j) {
    const int low_bit = block.qh[j / 8] >> j % 8 & 1, high_bit = block.qh[2 + j / 8] >> j % 8 & 1;
    q[j] = static_cast<int8_t>((block.qs[j] & 15) | low_bit << 4);
    q[j + 16] = static_cast<int8_t>(block.qs[j] >> 4 | high_bit << 4);
  }
}

void decode(const BlockQ8_0& block, int8_t* q, float* scale, float*) {
  fill2(scale, to_float(block.d));
  for (int j = 0; j < 32; ++j) q[j] = block.qs[j];
}

void decode(const BlockIQ4_NL& block, int8_t* q, float* scale, float*) {
  fill2(scale, to_float(block.d));
  for (int j = 0; j < 16; ++j) {
    q[j] = kIq4Values[block.qs[j] & 15];
    q[j + 16] = kIq4Values[block.qs[j] >> 4];
  }
}

void decode(const BlockQ2_K& block, int8_t* q, float* scale, float* offset) {
  const float d = to_float(block.d), dmin = to_float(block.dmin);
  for (int h = 0; h < 16; ++h) {
    scale[h] = d * static_cast<float>(block.scales[h] & 15);
    offset[h] = -(dmin * static_cast<float>(block.scales[h] >> 4));
  }
  for (int i = 0; i < 256; ++i) q[i] = block.qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
}

void decode(const BlockQ3_K& block, int8_t* q, float* scale, float*) {
  const float d = to_float(block.d);
  for (int h = 0; h < 16; ++h) {
    const int low = block.scales[h % 8] >> (h / 8 * 4) & 15, high = block.scales[8 + h % 4] >> (h / 4 * 2) & 3;
    scale[h] = d * static_cast<float>((low | high << 4) - 32);
  }
  for (int i = 0; i < 256; ++i) {
    const int low = block.qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
    q[i] = static_cast<int8_t>(low - ((block.hmask[i % 32] >> i / 32 & 1) != 0 ? 0 : 4));
  }
}

void decode(const BlockQ4_K& block, int8_t* q, float* scale, float* offset) {
  const float d = to_float(block.d), dmin = to_float(block.dmin);
  for (int g = 0; g < 8; ++g) {
    const ScaleAndMin s = scale_and_min(block.scales, g);
    fill2(scale + 2 * g, d * static_cast<float>(s.scale));
    fill2(offset + 2 * g, -(dmin * static_cast<float>(s.min)));
  }
  for (int i = 0; i < 256; ++i) q[i] = block.qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
}

void decode(const BlockQ5_K& block, int8_t* q, float* scale, float* offset) {
  const float d = to_float(block.d), dmin = to_float(block.dmin);
  for (int g = 0; g < 8; ++g) {
    const ScaleAndMin s = scale_and_min(block.scales, g);
    fill2(scale + 2 * g, d * static_cast<float>(s.scale));
    fill2(offset + 2 * g, -(dmin * static_cast<float>(s.min)));
  }
  for (int i = 0; i < 256; ++i) {
    const int low = block.qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
    q[i] = static_cast<int8_t>(low | (block.qh[i % 32] >> i / 32 & 1) << 4);
  }
}

void decode(const BlockQ6_K& block, int8_t* q, float* scale, float*) {
  const float d = to_float(block.d);
  for (int h = 0; h < 16; ++h) scale[h] = d * static_cast<float>(block.scales[h]);
  for (int i = 0; i < 256; ++i) {
    const int low = block.ql[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
    const int high = block.qh[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
    q[i] = static_cast<int8_t>((low | high << 4) - 32);
  }
}

void decode(const BlockIQ2_XXS& block, int8_t* q, float* scale, float*) {
  const float d = to_float(block.d);
  for (int g = 0; g < 8; ++g) {
    const uint32_t indices = word(block.qs + 4 * g), signs = word(block.qs + 4 * g + 2);
    fill2(scale + 2 * g, d * (0.5f + static_cast<float>(signs >> 28)) * 0.25f);
    for (int e = 0; e < 4; ++e) {
      put_signed<8>(q + 32 * g + 8 * e, kIq2XxsGrid.entries[indices >> (8 * e) & 255],
                    even_signs(signs >> (7 * e) & 127));
    }
  }
}

void decode(const BlockIQ2_XS& block, int8_t* q, float* scale, float*) {
  const float d = to_float(block.d);
  for (int h = 0; h < 16; ++h) scale[h] = d * (0.5f + static_cast<float>(nibble(block.scales, h))) * 0.25f;
  for (int e = 0; e < 32; ++e) {
    put_signed<8>(q + 8 * e, kIq2XsGrid.entries[block.qs[e] & 511], even_signs(block.qs[e] >> 9));
  }
}

void decode(const BlockIQ2_S& block, int8_t* q, float* scale, float*) {
  const float d = to_float(block.d);
  for (int h = 0; h < 16; ++h) scale[h] = d * (0.5f + static_cast<float>(nibble(block.scales, h))) * 0.25f;
  for (int e = 0; e < 32; ++e) {
    const int index = block.qs[e] | (block.qh[e / 4] >> (e % 4 * 2) & 3) << 8;
    put_signed<8>(q + 8 * e, kIq2SGrid.entries[index], block.signs[e]);
  }
}

void decode(const BlockIQ3_XXS& block, int8_t* q, float* scale, float*) {
  const float d = to_float(block.d);
  for (int g = 0; g < 8; ++g) {
    const uint32_t signs = word(block.signs_and_scales + 2 * g);
    fill2(scale + 2 * g, d * (0.5f + static_cast<float>(signs >> 28)) * 0.5f);
    for (int e = 0; e < 8; ++e) {
      put_signed<4>(q + 32 * g + 4 * e, kIq3XxsGrid.entries[block.qs[8 * g + e]],
                    even_signs(signs >> (7 * (e / 2)) & 127) >> (e % 2 * 4));
    }
  }
}

void decode(const BlockIQ3_S& block, int8_t* q, float* scale, float*) {
  const float d = to_float(block.d);
  for (int g = 0; g < 8; ++g) fill2(scale + 2 * g, d * static_cast<float>(1 + 2 * nibble(block.scales, g)));
  for (int e = 0; e < 64; ++e) {
    const int index = block.qs[e] | (block.qh[e / 8] >> e % 8 & 1) << 8;
    put_signed<4>(q + 4 * e, kIq3SGrid.entries[index], block.signs[e / 2] >> (e % 2 * 4));
  }
}

void decode(const BlockIQ1_S& block, int8_t* q, float* scale, float*) {
  const float d = to_float(block.d);
  for (int g = 0; g < 8; ++g) {
    const int high = block.qh[g];
    fill2(scale + 2 * g, d * static_cast<float>(2 * (high >> 12 & 7) + 1) * 0.125f);
    for (int e = 0; e < 4; ++e) {
      const int index = block.qs[4 * g + e] | (high >> (3 * e) & 7) << 8;
      put_with_delta(q + 32 * g + 8 * e, kIq1SGrid.entries[index], (high & 0x8000) != 0);
    }
  }
}

void decode(const BlockIQ1_M& block, int8_t* q, float* scale, float*) {
  uint32_t d_bits = 0;
  for (int w = 0; w < 4; ++w) d_bits |= static_cast<uint32_t>(block.scales[w] >> 12) << (4 * w);
  const float d = to_float(static_cast<F16Bits>(d_bits));
  for (int h = 0; h < 16; ++h) {
    scale[h] = d * static_cast<float>(2 * (block.scales[h / 4] >> (h % 4 * 3) & 7) + 1) * 0.125f;
  }
  for (int e = 0; e < 32; ++e) {
    const int high = nibble(block.qh, e);
    put_with_delta(q + 8 * e, kIq1SGrid.entries[block.qs[e] | (high & 7) << 8], (high & 8) != 0);
  }
}

void decode(const BlockIQ4_XS& block, int8_t* q, float* scale, float*) {
  const float d = to_float(block.d);
  for (int g = 0; g < 8; ++g) {
    const int s = nibble(block.scales_l, g) | (block.scales_h >> (2 * g) & 3) << 4;
    fill2(scale + 2 * g, d * static_cast<float>(s - 32));
    for (int j = 0; j < 16; ++j) {
      q[32 * g + j] = kIq4Values[block.qs[16 * g + j] & 15];
      q[32 * g + 16 + j] = kIq4Values[block.qs[16 * g + j] >> 4];
    }
  }
}

}  // namespace sgl_kernel::ggml
