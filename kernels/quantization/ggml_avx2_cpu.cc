// The CPU target's kernels for AVX2, and the decoding of the common formats. ggml_dot.h says what they compute.
#include <limits>

#include "kernels/base/float_types.h"
#include "kernels/quantization/ggml_dot.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define SGL_AVX2 __attribute__((target("avx2,fma,f16c")))
#define SGL_AVX2_INLINE __attribute__((target("avx2,fma,f16c"), always_inline)) inline

namespace sgl_kernel::ggml {
namespace {

SGL_AVX2_INLINE __m128i load16(const void* bytes) { return _mm_loadu_si128(static_cast<const __m128i*>(bytes)); }
SGL_AVX2_INLINE __m256i load32(const void* bytes) { return _mm256_loadu_si256(static_cast<const __m256i*>(bytes)); }
SGL_AVX2_INLINE void store32(void* bytes, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(bytes), value); }

SGL_AVX2_INLINE float to_float(F16Bits bits) { return _cvtsh_ss(bits); }

// ---- Quantization of a token's 32 elements ----

SGL_AVX2_INLINE __m256 load8(const float* x) { return _mm256_loadu_ps(x); }
SGL_AVX2_INLINE __m256 load8(const Half* x) { return _mm256_cvtph_ps(load16(x)); }
SGL_AVX2_INLINE __m256 load8(const BFloat16* x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(x)), 16));
}

// Over the four lanes of each half.
SGL_AVX2_INLINE int sum4(__m128i v) {
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}

template <class T>
SGL_AVX2 void quantize(TokenGroup* group, const void* x) {
  const __m256i magnitude_mask = _mm256_set1_epi32(0x7fffffff);
  __m256 values[4];
  // The bits of magnitudes order as the magnitudes do, with infinity and NaN above.
  __m256i most = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    values[i] = load8(static_cast<const T*>(x) + 8 * i);
    most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(values[i]), magnitude_mask));
  }
  __m128i most4 = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  most4 = _mm_max_epi32(most4, _mm_shuffle_epi32(most4, 0x4e));
  most4 = _mm_max_epi32(most4, _mm_shuffle_epi32(most4, 0xb1));
  const float amax = _mm_cvtss_f32(_mm_castsi128_ps(most4));
  const bool finite = _mm_cvtsi128_si32(most4) < 0x7f800000;
  if (!finite || amax < 0x1p-100f) {
    *group = {};
    if (!finite) group->d = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const __m256 inverse = _mm256_set1_ps(127 / amax);
  __m256i q[4];
  for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(values[i], inverse));
  const __m256i sum_low = _mm256_add_epi32(q[0], q[1]), sum_high = _mm256_add_epi32(q[2], q[3]);
  group->half_sum[0] =
      static_cast<float>(sum4(_mm_add_epi32(_mm256_castsi256_si128(sum_low), _mm256_extracti128_si256(sum_low, 1))));
  group->half_sum[1] =
      static_cast<float>(sum4(_mm_add_epi32(_mm256_castsi256_si128(sum_high), _mm256_extracti128_si256(sum_high, 1))));
  group->sum = group->half_sum[0] + group->half_sum[1];
  group->d = amax / 127;
  // The packs work on each half of a vector: the permutation puts the quads in order again.
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  store32(group->q, _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

// ---- Decoding ----

// 16 bytes as 32 nibbles: the low ones, then the high ones.
SGL_AVX2_INLINE __m256i nibbles(const uint8_t* bytes) {
  const __m128i low = load16(bytes), high = _mm_srli_epi16(low, 4);
  return _mm256_and_si256(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1), _mm256_set1_epi8(15));
}

// Byte j is 16 where bit j is set, else 0.
SGL_AVX2_INLINE __m256i bits_as_16(const uint8_t* bits) {
  int word;
  __builtin_memcpy(&word, bits, 4);
  const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  const __m256i chosen = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), byte_of), bit_of);
  return _mm256_and_si256(_mm256_cmpeq_epi8(chosen, bit_of), _mm256_set1_epi8(16));
}

// Formats without code of their own here go through the plain form.
template <class Block>
SGL_AVX2_INLINE void put(const Block& block, StripGroup* strip, int r) {
  put_block(block, strip, r);
}

SGL_AVX2_INLINE void put(const BlockQ4_0& block, StripGroup* strip, int r) {
  store32(strip->q[r], nibbles(block.qs));
  const float d = to_float(block.d);
  strip->scale[0][r] = d;
  strip->offset[0][r] = -8 * d;
}

SGL_AVX2_INLINE void put(const BlockQ4_1& block, StripGroup* strip, int r) {
  store32(strip->q[r], nibbles(block.qs));
  strip->scale[0][r] = to_float(block.d);
  strip->offset[0][r] = to_float(block.m);
}

SGL_AVX2_INLINE void put(const BlockQ5_0& block, StripGroup* strip, int r) {
  store32(strip->q[r], _mm256_or_si256(nibbles(block.qs), bits_as_16(block.qh)));
  const float d = to_float(block.d);
  strip->scale[0][r] = d;
  strip->offset[0][r] = -16 * d;
}

SGL_AVX2_INLINE void put(const BlockQ5_1& block, StripGroup* strip, int r) {
  store32(strip->q[r], _mm256_or_si256(nibbles(block.qs), bits_as_16(block.qh)));
  strip->scale[0][r] = to_float(block.d);
  strip->offset[0][r] = to_float(block.m);
}

SGL_AVX2_INLINE void put(const BlockQ8_0& block, StripGroup* strip, int r) {
  store32(strip->q[r], load32(block.qs));
  strip->scale[0][r] = to_float(block.d);
}

SGL_AVX2_INLINE void put(const BlockIQ4_NL& block, StripGroup* strip, int r) {
  const __m256i values = _mm256_broadcastsi128_si256(load16(kIq4Values));
  store32(strip->q[r], _mm256_shuffle_epi8(values, nibbles(block.qs)));
  strip->scale[0][r] = to_float(block.d);
}

SGL_AVX2_INLINE void put(const BlockIQ4_XS& block, StripGroup* strip, int r) {
  const __m256i values = _mm256_broadcastsi128_si256(load16(kIq4Values));
  const float d = to_float(block.d);
  for (int g = 0; g < 8; ++g) {
    store32(strip[g].q[r], _mm256_shuffle_epi8(values, nibbles(block.qs + 16 * g)));
    const int low = block.scales_l[g / 2] >> (g % 2 * 4) & 15, high = block.scales_h >> (2 * g) & 3;
    strip[g].scale[0][r] = d * static_cast<float>((low | high << 4) - 32);
  }
}

// The scales and offsets of Q4_K and Q5_K.
template <class Block>
SGL_AVX2_INLINE void put_scales(const Block& block, StripGroup* strip, int r) {
  const float d = to_float(block.d), dmin = to_float(block.dmin);
  for (int g = 0; g < 8; ++g) {
    const ScaleAndMin s = scale_and_min(block.scales, g);
    strip[g].scale[0][r] = d * static_cast<float>(s.scale);
    strip[g].offset[0][r] = -(dmin * static_cast<float>(s.min));
  }
}

SGL_AVX2_INLINE void put(const BlockQ4_K& block, StripGroup* strip, int r) {
  const __m256i mask = _mm256_set1_epi8(15);
  for (int c = 0; c < 4; ++c) {
    const __m256i both = load32(block.qs + 32 * c);
    store32(strip[2 * c].q[r], _mm256_and_si256(both, mask));
    store32(strip[2 * c + 1].q[r], _mm256_and_si256(_mm256_srli_epi16(both, 4), mask));
  }
  put_scales(block, strip, r);
}

SGL_AVX2_INLINE void put(const BlockQ5_K& block, StripGroup* strip, int r) {
  const __m256i mask = _mm256_set1_epi8(15), fifth = _mm256_set1_epi8(16);
  const __m256i high = load32(block.qh);
  for (int c = 0; c < 4; ++c) {
    const __m256i both = load32(block.qs + 32 * c);
    // Bits 2 c and 2 c + 1 of every byte.
    const __m256i two = _mm256_and_si256(_mm256_srl_epi16(high, _mm_cvtsi32_si128(2 * c)), _mm256_set1_epi8(3));
    const __m256i even = _mm256_slli_epi16(two, 4), odd = _mm256_slli_epi16(two, 3);
    store32(strip[2 * c].q[r], _mm256_or_si256(_mm256_and_si256(both, mask), _mm256_and_si256(even, fifth)));
    store32(strip[2 * c + 1].q[r],
            _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(both, 4), mask), _mm256_and_si256(odd, fifth)));
  }
  put_scales(block, strip, r);
}

SGL_AVX2_INLINE void put(const BlockQ6_K& block, StripGroup* strip, int r) {
  const __m256i mask = _mm256_set1_epi8(15), high_mask = _mm256_set1_epi8(48);
  for (int c = 0; c < 2; ++c) {
    const __m256i low0 = load32(block.ql + 64 * c), low1 = load32(block.ql + 64 * c + 32);
    const __m256i high = load32(block.qh + 32 * c);
    StripGroup* out = strip + 4 * c;
    const auto join = [&](__m256i low, __m256i shifted) SGL_AVX2 {
      return _mm256_or_si256(_mm256_and_si256(low, mask), _mm256_and_si256(shifted, high_mask));
    };
    store32(out[0].q[r], join(low0, _mm256_slli_epi16(high, 4)));
    store32(out[1].q[r], join(low1, _mm256_slli_epi16(high, 2)));
    store32(out[2].q[r], join(_mm256_srli_epi16(low0, 4), high));
    store32(out[3].q[r], join(_mm256_srli_epi16(low1, 4), _mm256_srli_epi16(high, 2)));
  }
  const float d = to_float(block.d);
  for (int h = 0; h < 16; ++h) {
    const float scale = d * static_cast<float>(block.scales[h]);
    strip[h / 2].scale[h % 2][r] = scale;
    strip[h / 2].offset[h % 2][r] = -32 * scale;
  }
}

template <class Block>
SGL_AVX2 void decode_strip(StripGroup* strip, const uint8_t* const* rows, int64_t num_blocks) {
  for (int r = 0; r < kStripRows; ++r) {
    const Block* blocks = reinterpret_cast<const Block*>(rows[r]);
    for (int64_t b = 0; b < num_blocks; ++b) put(blocks[b], strip + b * (Format<Block>::kSize / 32), r);
  }
}

// ---- Dot products ----

// maddubs() adds two products of an unsigned and a signed byte in an int16, which holds kMaxSums such pairs of q <=
// kMaxQ and |x| <= 127. A signed q goes in as |q| <= 128, its sign given to x: a pair, 32512, fits.
template <int kMaxQ>
constexpr int kMaxSums = kMaxQ == 0 ? 1 : 32767 / (2 * 127 * kMaxQ);

SGL_AVX2_INLINE __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

template <int kMaxQ>
SGL_AVX2_INLINE __m256i pair_products(__m256i q, __m256i x) {
  if constexpr (kMaxQ == 0) return _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q));
  return _mm256_maddubs_epi16(q, x);
}

// Adds within each half: [a0 + a2, b0 + b2, a1 + a3, b1 + b3], in int16 or int32.
template <bool k16>
SGL_AVX2_INLINE __m256i add(__m256i a, __m256i b) {
  return k16 ? _mm256_add_epi16(a, b) : _mm256_add_epi32(a, b);
}

// For each half h of the vectors p[0..7], which hold a row's products: halves[h] = the rows' sums over it. Adds in
// int16 as long as kMaxQ allows.
template <int kMaxQ>
SGL_AVX2_INLINE void add_across(__m256i (&p)[8], __m256i& low, __m256i& high) {
  constexpr bool k16First = kMaxSums<kMaxQ> >= 2, k16Second = kMaxSums<kMaxQ> >= 4;
  if constexpr (!k16First) {
    for (__m256i& v : p) v = widen(v);
  }
  __m256i four[4];
  for (int i = 0; i < 4; ++i) {
    const __m256i a = p[2 * i], b = p[2 * i + 1];
    four[i] = add<k16First>(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    if constexpr (k16First && !k16Second) four[i] = widen(four[i]);
  }
  __m256i two[2];
  for (int i = 0; i < 2; ++i) {
    const __m256i a = four[2 * i], b = four[2 * i + 1];
    two[i] = add<k16Second>(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    if constexpr (k16Second) two[i] = widen(two[i]);
  }
  low = _mm256_permute2x128_si256(two[0], two[1], 0x20);
  high = _mm256_permute2x128_si256(two[0], two[1], 0x31);
}

// acc + d * y, y as ggml_dot.h says. A lane is a row, or a token: then the strip's numbers are the same in each.
template <int kHalves, int kMaxQ>
SGL_AVX2_INLINE __m256 add_group(__m256 acc, __m256 d, const __m256i (&dots)[2], const __m256 (&scale)[2],
                                 const __m256 (&offset)[2], const __m256 (&sum)[2]) {
  __m256 y = _mm256_mul_ps(scale[0], _mm256_cvtepi32_ps(dots[0]));
  if constexpr (kMaxQ != 0) y = _mm256_fmadd_ps(offset[0], sum[0], y);
  if constexpr (kHalves == 2) {
    y = _mm256_fmadd_ps(scale[1], _mm256_cvtepi32_ps(dots[1]), y);
    if constexpr (kMaxQ != 0) y = _mm256_fmadd_ps(offset[1], sum[1], y);
  }
  return _mm256_fmadd_ps(d, y, acc);
}

// A lane is a row.
template <int kHalves, int kMaxQ>
SGL_AVX2 void dot_token(float* acc, const StripGroup* strip, const TokenGroup* token, int64_t num_groups) {
  __m256 sums = _mm256_loadu_ps(acc);
  for (int64_t g = 0; g < num_groups; ++g) {
    const StripGroup& w = strip[g];
    const TokenGroup& t = token[g];
    const __m256i x = load32(t.q);
    __m256i p[8], dots[2];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) p[r] = pair_products<kMaxQ>(load32(w.q[r]), x);
    add_across<kMaxQ>(p, dots[0], dots[1]);
    __m256 scale[2], offset[2], sum[2];
    if constexpr (kHalves == 1) dots[0] = _mm256_add_epi32(dots[0], dots[1]);
    for (int h = 0; h < kHalves; ++h) {
      scale[h] = _mm256_load_ps(w.scale[h]);
      if constexpr (kMaxQ == 0) continue;
      offset[h] = _mm256_load_ps(w.offset[h]);
      sum[h] = _mm256_broadcast_ss(kHalves == 1 ? &t.sum : &t.half_sum[h]);
    }
    sums = add_group<kHalves, kMaxQ>(sums, _mm256_broadcast_ss(&t.d), dots, scale, offset, sum);
  }
  _mm256_storeu_ps(acc, sums);
}

// The dot of one row's quads [first, first + kQuads) with each token of a tile.
template <int kMaxQ, int kQuads>
SGL_AVX2_INLINE __m256i dot_quads(const uint8_t* q, const __m256i* x) {
  constexpr int kRun = kMaxSums<kMaxQ> < kQuads ? kMaxSums<kMaxQ> : kQuads;
  __m256i dot = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int first = 0; first < kQuads; first += kRun) {
    __m256i run = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int i = first; i < first + kRun; ++i) {
      int quad;
      __builtin_memcpy(&quad, q + 4 * i, 4);
      const __m256i pairs = pair_products<kMaxQ>(_mm256_set1_epi32(quad), x[i]);
      run = i == first ? pairs : _mm256_add_epi16(run, pairs);
    }
    dot = first == 0 ? widen(run) : _mm256_add_epi32(dot, widen(run));
  }
  return dot;
}

// A lane is a token. Four rows at a time: their sums and a group of the tile, 8 vectors, stay in registers.
template <int kHalves, int kMaxQ>
SGL_AVX2 void dot_tile(float* acc, const StripGroup* strip, const TileGroup* tile, int64_t num_groups) {
  constexpr int kRows = 4;
  for (int first_row = 0; first_row < kStripRows; first_row += kRows) {
    __m256 sums[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sums[r] = _mm256_loadu_ps(acc + (first_row + r) * kTileTokens);
    for (int64_t g = 0; g < num_groups; ++g) {
      const StripGroup& w = strip[g];
      const TileGroup& t = tile[g];
      __m256i x[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) x[i] = load32(t.q[i]);
      const __m256 d = _mm256_load_ps(t.d);
      __m256 sum[2];
      sum[0] = _mm256_load_ps(kHalves == 1 ? t.sum : t.half_sum[0]);
      sum[1] = _mm256_load_ps(t.half_sum[1]);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const int row = first_row + r;
        __m256i dots[2];
        __m256 scale[2], offset[2];
        for (int h = 0; h < kHalves; ++h) {
          dots[h] = dot_quads<kMaxQ, 8 / kHalves>(w.q[row] + 16 * h, x + 4 * h);
          scale[h] = _mm256_broadcast_ss(&w.scale[h][row]);
          if constexpr (kMaxQ != 0) offset[h] = _mm256_broadcast_ss(&w.offset[h][row]);
        }
        sums[r] = add_group<kHalves, kMaxQ>(sums[r], d, dots, scale, offset, sum);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) _mm256_storeu_ps(acc + (first_row + r) * kTileTokens, sums[r]);
  }
}

}  // namespace

bool has_avx2() {
  static const bool has =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return has;
}

Kernels avx2_kernels(int64_t type) {
  Kernels kernels = {};
  with_block(type, [&]<class Block>() {
    using P = Packing<Block>;
    kernels = {decode_strip<Block>,
               dot_token<P::kHalves, P::kMaxQ>,
               dot_tile<P::kHalves, P::kMaxQ>,
               quantize<Half>,
               quantize<BFloat16>,
               quantize<float>};
  });
  return kernels;
}

}  // namespace sgl_kernel::ggml

#else

namespace sgl_kernel::ggml {

bool has_avx2() { return false; }
Kernels avx2_kernels(int64_t type) { return scalar_kernels(type); }

}  // namespace sgl_kernel::ggml

#endif
