// The CPU target's kernels for AVX2. ggml_dot.h says what they compute.
#include <limits>

#include "kernels/base/float_types.h"
#include "kernels/quantization/ggml_avx2.h"
#include "kernels/quantization/ggml_dot.h"

#if defined(__x86_64__)
namespace sgl_kernel::ggml {
namespace {

// ---- Quantization of a token's 32 elements ----

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

SGL_AVX2_INLINE void prefetch(const uint8_t* bytes, int64_t size) {
  for (int64_t i = 0; i < size; i += 64) _mm_prefetch(reinterpret_cast<const char*>(bytes + i), _MM_HINT_T0);
}

// The numbers of 8 rows, which lie behind each other, as those of 8 groups (or halves of groups).
SGL_AVX2_INLINE void transpose(__m256 (&v)[8]) {
  __m256 pairs[8], quads[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256d low = _mm256_castps_pd(pairs[i / 2 * 4 + i % 2]),
                  high = _mm256_castps_pd(pairs[i / 2 * 4 + i % 2 + 2]);
    quads[2 * i] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
    quads[2 * i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

// What decode_strip() collects of 8 rows before it writes it to the strip.
template <class Block, bool k32 = Format<Block>::kSize == 32>
struct Numbers {
  alignas(16) F16Bits scale[kPieceGroups][kStripRows], offset[kPieceGroups][kStripRows];
};
template <class Block>
struct Numbers<Block, false> {
  static constexpr int kScales = 8 * Packing<Block>::kHalves;  // of a block
  alignas(32) float scale[kPieceGroups / 8][kStripRows][kScales], offset[kPieceGroups / 8][kStripRows][kScales];
};

template <class Block>
SGL_AVX2 void put_numbers(StripGroup* strip, const Numbers<Block>& numbers, int64_t num_blocks) {
  using P = Packing<Block>;
  const __m256 minus_bias = _mm256_set1_ps(-P::kBias);
  for (int64_t b = 0; b < num_blocks; ++b) {
    if constexpr (Format<Block>::kSize == 32) {
      const __m256 scale = _mm256_cvtph_ps(load16(numbers.scale[b]));
      _mm256_store_ps(strip[b].scale[0], scale);
      if constexpr (Format<Block>::kHasOffset) {
        _mm256_store_ps(strip[b].offset[0], _mm256_cvtph_ps(load16(numbers.offset[b])));
      } else if constexpr (P::kMaxQ != 0) {
        _mm256_store_ps(strip[b].offset[0], _mm256_mul_ps(scale, minus_bias));
      }
    } else {
      for (int first = 0; first < 8 * P::kHalves; first += 8) {
        __m256 scale[8], offset[8];
        for (int r = 0; r < 8; ++r) scale[r] = _mm256_load_ps(&numbers.scale[b][r][first]);
        transpose(scale);
        if constexpr (Format<Block>::kHasOffset) {
          for (int r = 0; r < 8; ++r) offset[r] = _mm256_load_ps(&numbers.offset[b][r][first]);
          transpose(offset);
        }
        for (int i = 0; i < 8; ++i) {
          StripGroup& group = strip[8 * b + (first + i) / P::kHalves];
          const int h = (first + i) % P::kHalves;
          _mm256_store_ps(group.scale[h], scale[i]);
          if constexpr (Format<Block>::kHasOffset) {
            _mm256_store_ps(group.offset[h], offset[i]);
          } else if constexpr (P::kMaxQ != 0) {
            _mm256_store_ps(group.offset[h], _mm256_mul_ps(scale[i], minus_bias));
          }
        }
      }
    }
  }
}

template <class Block>
SGL_AVX2 void decode_strip(StripGroup* strip, const uint8_t* const* rows, int64_t num_blocks, int64_t next) {
  Numbers<Block> numbers;
  for (int r = 0; r < kStripRows; ++r) {
    const Block* blocks = reinterpret_cast<const Block*>(rows[r]);
    prefetch(rows[r] + next, num_blocks * sizeof(Block));
    for (int64_t b = 0; b < num_blocks; ++b) {
      if constexpr (Format<Block>::kSize == 32) {
        store32(strip[b].q[r], bytes_of(blocks[b]));
        numbers.scale[b][r] = blocks[b].d;
        if constexpr (Format<Block>::kHasOffset) numbers.offset[b][r] = blocks[b].m;
      } else {
        put(blocks[b], strip + 8 * b, r, numbers.scale[b][r], numbers.offset[b][r]);
      }
    }
  }
  put_numbers<Block>(strip, numbers, num_blocks);
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

template <bool k16>
SGL_AVX2_INLINE __m256i add(__m256i a, __m256i b) {
  return k16 ? _mm256_add_epi16(a, b) : _mm256_add_epi32(a, b);
}

// p[r] holds the sums of pairs of row r's products. low, high: lane r is the row's sum over the lower and the upper
// half of the vector. Adds in int16 as long as kMaxQ allows.
template <int kMaxQ>
SGL_AVX2_INLINE void add_across(__m256i (&p)[8], __m256i& low, __m256i& high) {
  constexpr bool k16First = kMaxSums<kMaxQ> >= 2, k16Second = kMaxSums<kMaxQ> >= 4;
  if constexpr (!k16First) {
#pragma GCC unroll 8
    for (__m256i& v : p) v = widen(v);
  }
  __m256i four[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i a = p[2 * i], b = p[2 * i + 1];
    four[i] = add<k16First>(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    if constexpr (k16First && !k16Second) four[i] = widen(four[i]);
  }
  __m256i two[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m256i a = four[2 * i], b = four[2 * i + 1];
    two[i] = add<k16Second>(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    if constexpr (k16Second) two[i] = widen(two[i]);
  }
  low = _mm256_permute2x128_si256(two[0], two[1], 0x20);
  high = _mm256_permute2x128_si256(two[0], two[1], 0x31);
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
    if constexpr (kHalves == 1) dots[0] = _mm256_add_epi32(dots[0], dots[1]);
    __m256 y;
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      const __m256 scale = _mm256_load_ps(w.scale[h]), product = _mm256_cvtepi32_ps(dots[h]);
      y = h == 0 ? _mm256_mul_ps(scale, product) : _mm256_fmadd_ps(scale, product, y);
      if constexpr (kMaxQ != 0) {
        const __m256 sum = _mm256_broadcast_ss(kHalves == 1 ? &t.sum : &t.half_sum[h]);
        y = _mm256_fmadd_ps(_mm256_load_ps(w.offset[h]), sum, y);
      }
    }
    sums = _mm256_fmadd_ps(_mm256_broadcast_ss(&t.d), y, sums);
  }
  _mm256_storeu_ps(acc, sums);
}

// The same without a strip in between, for a single token: what is decoded stays in registers, and the reading of W,
// which bounds this, never pauses. For the formats of 32 elements.
template <class Block>
SGL_AVX2 void dot_rows(float* acc, const uint8_t* const* rows, const TokenGroup* token, int64_t num_blocks,
                       int64_t next) {
  using P = Packing<Block>;
  const Block* blocks[kStripRows];
  for (int r = 0; r < kStripRows; ++r) blocks[r] = reinterpret_cast<const Block*>(rows[r]);
  __m256 sums = _mm256_loadu_ps(acc);
  for (int64_t b = 0; b < num_blocks; ++b) {
    const TokenGroup& t = token[b];
    const __m256i x = load32(t.q);
    __m256i p[8], dots[2];
    __m128i start[8];  // the first 4 bytes of a block: its f16 numbers
    prefetch(rows[0] + next + b * (kStripRows * sizeof(Block)), kStripRows * sizeof(Block));
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      p[r] = pair_products<P::kMaxQ>(bytes_of(blocks[r][b]), x);
      start[r] = _mm_loadu_si32(&blocks[r][b]);
    }
    add_across<P::kMaxQ>(p, dots[0], dots[1]);
    const __m128i start0 =
        _mm_unpacklo_epi64(_mm_unpacklo_epi32(start[0], start[1]), _mm_unpacklo_epi32(start[2], start[3]));
    const __m128i start4 =
        _mm_unpacklo_epi64(_mm_unpacklo_epi32(start[4], start[5]), _mm_unpacklo_epi32(start[6], start[7]));
    const __m256i starts = _mm256_inserti128_si256(_mm256_castsi128_si256(start0), start4, 1);
    const __m256i numbers = _mm256_permute4x64_epi64(
        _mm256_packus_epi32(_mm256_and_si256(starts, _mm256_set1_epi32(0xffff)), _mm256_srli_epi32(starts, 16)), 0xd8);
    const __m256 scale = _mm256_cvtph_ps(_mm256_castsi256_si128(numbers));
    __m256 y = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_add_epi32(dots[0], dots[1])));
    if constexpr (P::kMaxQ != 0) {
      const __m256 offset = Format<Block>::kHasOffset ? _mm256_cvtph_ps(_mm256_extracti128_si256(numbers, 1))
                                                      : _mm256_mul_ps(scale, _mm256_set1_ps(-P::kBias));
      y = _mm256_fmadd_ps(offset, _mm256_broadcast_ss(&t.sum), y);
    }
    sums = _mm256_fmadd_ps(_mm256_broadcast_ss(&t.d), y, sums);
  }
  _mm256_storeu_ps(acc, sums);
}

// Says that the value may change here. Without it the compiler rewrites a chain of integer additions as a tree, whose
// many partial sums spill.
SGL_AVX2_INLINE void keep_order(__m256i& value) { __asm__("" : "+x"(value)); }

// A lane is a token. Four rows by two vectors of tokens at a time: their running sums stay in registers, and a quad of
// a row is loaded for both vectors, one of the tokens for four rows.
template <int kHalves, int kMaxQ>
SGL_AVX2 void dot_tile(float* acc, const StripGroup* strip, const TileGroup* tile, int64_t num_groups) {
  constexpr int kRows = 4, kVectors = kTileTokens / 8, kQuads = 8 / kHalves;
  constexpr int kRun = kMaxSums<kMaxQ> < kQuads ? kMaxSums<kMaxQ> : kQuads;  // quads added in int16
  for (int first_row = 0; first_row < kStripRows; first_row += kRows) {
    for (int64_t g = 0; g < num_groups; ++g) {
      const uint8_t* q = strip[g].q[first_row];
      const TileGroup& t = tile[g];
      __m256 y[kRows][kVectors];
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        __m256i dot[kRows][kVectors];
#pragma GCC unroll 8
        for (int first = 0; first < kQuads; first += kRun) {
          __m256i run[kRows][kVectors];
#pragma GCC unroll 8
          for (int i = first; i < first + kRun; ++i) {
            const int quad = h * kQuads + i;
            const __m256i x[kVectors] = {load32(t.q[quad][0]), load32(t.q[quad][8])};
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
              int four;
              __builtin_memcpy(&four, q + 32 * r + 4 * quad, 4);
              const __m256i w = _mm256_set1_epi32(four);
#pragma GCC unroll 2
              for (int v = 0; v < kVectors; ++v) {
                const __m256i pairs = pair_products<kMaxQ>(w, x[v]);
                run[r][v] = i == first ? pairs : _mm256_add_epi16(run[r][v], pairs);
                keep_order(run[r][v]);
              }
            }
          }
#pragma GCC unroll 8
          for (int i = 0; i < kRows * kVectors; ++i) {
            const __m256i wide = widen(run[i / kVectors][i % kVectors]);
            __m256i& sum = dot[i / kVectors][i % kVectors];
            sum = first == 0 ? wide : _mm256_add_epi32(sum, wide);
          }
        }
#pragma GCC unroll 8
        for (int i = 0; i < kRows * kVectors; ++i) {
          const int r = i / kVectors, v = i % kVectors;
          const __m256 scale = _mm256_broadcast_ss(&strip[g].scale[h][first_row + r]);
          const __m256 product = _mm256_cvtepi32_ps(dot[r][v]);
          y[r][v] = h == 0 ? _mm256_mul_ps(scale, product) : _mm256_fmadd_ps(scale, product, y[r][v]);
          if constexpr (kMaxQ != 0) {
            const __m256 offset = _mm256_broadcast_ss(&strip[g].offset[h][first_row + r]);
            y[r][v] = _mm256_fmadd_ps(offset, load8((kHalves == 1 ? t.sum : t.half_sum[h]) + 8 * v), y[r][v]);
          }
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRows * kVectors; ++i) {
        const int r = i / kVectors, v = i % kVectors;
        float* sums = acc + (first_row + r) * kTileTokens + 8 * v;
        _mm256_storeu_ps(sums, _mm256_fmadd_ps(load8(t.d + 8 * v), y[r][v], load8(sums)));
      }
    }
  }
}

}  // namespace

Kernels avx2_kernels(int64_t type) {
  Kernels kernels = {};
  with_block(type, [&]<class Block>() {
    using P = Packing<Block>;
    kernels.decode_strip = decode_strip<Block>;
    kernels.dot_token = dot_token<P::kHalves, P::kMaxQ>;
    kernels.dot_tile = dot_tile<P::kHalves, P::kMaxQ>;
    if constexpr (Format<Block>::kSize == 32) kernels.dot_rows = dot_rows<Block>;
    kernels.quantize_f16 = quantize<Half>;
    kernels.quantize_bf16 = quantize<BFloat16>;
    kernels.quantize_f32 = quantize<float>;
  });
  return kernels;
}

}  // namespace sgl_kernel::ggml

#else

namespace sgl_kernel::ggml {

Kernels avx2_kernels(int64_t type) { return scalar_kernels(type); }

}  // namespace sgl_kernel::ggml

#endif
