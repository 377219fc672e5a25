// Products of up to four rows with an 8-bit matrix on the CPU: the matrix is read once, in order, and decoded in
// registers.
//
// A task has kTaskColumns columns of the output. It walks K in parts of which all rows of A are decoded before, and
// within a part goes along each row of B. A block's products are added in the order of tiled_mm_cpu.h, so that results
// do not depend on the number of rows.
//
// Bound by decoding. One thread of an EPYC with AVX2 took for 1 x 4096 x 4096 2.5 ms for e4m3, 0.55 ms for int8, and
// torch.mm 1.8 ms for bf16 (2026-11-23); with 4 rows 6.6, 3.0 and 8.2 ms.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/base/cpu_avx2.h"
#include "kernels/base/parallel.h"
#include "kernels/gemm/tiled_mm_cpu.h"

#ifdef SGL_AVX2

namespace sgl_kernel::cpu {

inline constexpr int kFewRows = 4;
inline constexpr int64_t kTaskColumns = 64;
// Of f32 16 KiB, half of a first-level cache.
template <int kRows>
inline constexpr int64_t kPartK = kBlockK * (kRows > 2 ? 8 : 32 / kRows);

// 2^-8 times sixteen numbers, as halves, whose exponent is biased by 8 more. Bits 7 and 8 of a widened byte are its
// sign.
SGL_AVX2 inline __m256i load_halves(const Float8E4M3* from) {
  const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  const __m256i halves = _mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbfff)));
  const __m256i ones = _mm256_set1_epi16(-1);
  const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_or_si256(words, _mm256_set1_epi16(-0x80)), ones);
  return _mm256_or_si256(halves, is_nan);
}

// sums[r] = sum_k a[r][k] * b[k] over kBlockK numbers; rows of a are kPartK<kRows> apart.
template <int kRows>
SGL_AVX2 void block_sums(const float* a, const Float8E4M3* b, float* sums) {
  __m256 total[kRows];
  for (__m256& sum : total) sum = _mm256_setzero_ps();
  for (int64_t k = 0; k < kBlockK; k += 16) {
    const __m256i halves = load_halves(b + k);
    const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
    const __m256 high = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
    for (int r = 0; r < kRows; ++r) {
      total[r] = _mm256_fmadd_ps(_mm256_loadu_ps(a + r * kPartK<kRows> + k), low, total[r]);
      total[r] = _mm256_fmadd_ps(_mm256_loadu_ps(a + r * kPartK<kRows> + k + 8), high, total[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) sums[r] = 256.0f * add_lanes(total[r]);
}
template <int kRows>
SGL_AVX2 void block_sums(const int16_t* a, const int8_t* b, int32_t* sums) {
  __m256i total[kRows];
  for (__m256i& sum : total) sum = _mm256_setzero_si256();
  for (int64_t k = 0; k < kBlockK; k += 16) {
    const __m256i right = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + k)));
    for (int r = 0; r < kRows; ++r) {
      const __m256i left = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + r * kPartK<kRows> + k));
      total[r] = _mm256_add_epi32(total[r], _mm256_madd_epi16(left, right));
    }
  }
  for (int r = 0; r < kRows; ++r) sums[r] = add_lanes(total[r]);
}

template <int kRows, class Decoded, class Encoded, class DecodeA, class Block, class Store>
void rows_mm(int64_t n, int64_t k, const DecodeA& decode_a, const Encoded* b, int64_t b_stride, const Block& block,
             const Store& store) {
  using Sum = std::conditional_t<std::is_same_v<Decoded, float>, float, int32_t>;
  const auto multiply_columns = [&](int64_t first, int64_t columns) {
    alignas(32) Decoded a[kRows * kPartK<kRows>];
    Sum totals[kTaskColumns][kRows] = {}, sums[kRows];
    for (int64_t part = 0; part < k; part += kPartK<kRows>) {
      const int64_t count = std::min(kPartK<kRows>, k - part);
      for (int row = 0; row < kRows; ++row) {
        decode_a(row, part, count, a + row * kPartK<kRows>);
        std::fill(a + row * kPartK<kRows> + count, a + (row + 1) * kPartK<kRows>, Decoded(0));
      }
      for (int64_t column = 0; column < columns; ++column) {
        const Encoded* const row_of_b = b + (first + column) * b_stride + part;
        for (int64_t l = 0; l < count; l += kBlockK) {
          if (count - l >= kBlockK) {
            block_sums<kRows>(a + l, row_of_b + l, sums);
          } else {
            Encoded last[kBlockK] = {};
            std::copy(row_of_b + l, row_of_b + count, last);
            block_sums<kRows>(a + l, last, sums);
          }
          for (int row = 0; row < kRows; ++row) totals[column][row] += block(row, first + column, part + l, sums[row]);
        }
      }
    }
    for (int row = 0; row < kRows; ++row) {
      for (int64_t column = 0; column < columns; ++column) store(row, first + column, totals[column][row]);
    }
  };
  parallel_for((n + kTaskColumns - 1) / kTaskColumns, /*grain=*/1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      multiply_columns(task * kTaskColumns, std::min(kTaskColumns, n - task * kTaskColumns));
    }
  });
}

// tiled_mm() for m <= kFewRows and a matrix b [n, k] of Encoded numbers, rows b_stride apart.
template <class Decoded, class Encoded, class DecodeA, class Block, class Store>
void few_rows_mm(int64_t m, int64_t n, int64_t k, const DecodeA& decode_a, const Encoded* b, int64_t b_stride,
                 const Block& block, const Store& store) {
  static_assert(kFewRows == 4);
  switch (m) {
    case 1:
      return rows_mm<1, Decoded>(n, k, decode_a, b, b_stride, block, store);
    case 2:
      return rows_mm<2, Decoded>(n, k, decode_a, b, b_stride, block, store);
    case 3:
      return rows_mm<3, Decoded>(n, k, decode_a, b, b_stride, block, store);
    default:
      return rows_mm<4, Decoded>(n, k, decode_a, b, b_stride, block, store);
  }
}

}  // namespace sgl_kernel::cpu

#endif
