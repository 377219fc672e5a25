// Products of matrices on the CPU, whatever their elements are stored as.
//
// A task has a tile of kTileRows x kTileColumns of the output and walks K in blocks. Of each block the operands are
// decoded once, to f32, or to int16 with sums in int32, and multiplied by dot products of kStrip vectors along K.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/base/cpu_avx2.h"
#include "kernels/base/parallel.h"

namespace sgl_kernel::cpu {

inline constexpr int64_t kBlockK = 128;  // of a decoded block
// The decoded blocks of a tile, 36 KiB of f32, stay near the first-level cache.
inline constexpr int64_t kTileRows = 24, kTileColumns = 48;
// Rows by columns of sums that are in registers at a time.
inline constexpr int kStripRows = 4, kStripColumns = 3;

// sums[r][c] = sum_k a[r][k] * b[c][k], rows of kBlockK numbers.
template <class Decoded, class Sum>
void plain_strip(const Decoded* a, const Decoded* b, int rows, int columns, Sum (&sums)[kStripRows][kStripColumns]) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) {
      Sum sum = 0;
      for (int64_t k = 0; k < kBlockK; ++k) sum += static_cast<Sum>(a[r * kBlockK + k]) * b[c * kBlockK + k];
      sums[r][c] = sum;
    }
  }
}

#ifdef SGL_AVX2

SGL_AVX2 inline float add_lanes(__m256 value) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
SGL_AVX2 inline int32_t add_lanes(__m256i value) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

// A whole strip; rows and columns beyond the tile are computed from what lies there, and not used.
SGL_AVX2 inline void avx2_strip(const float* a, const float* b, float (&sums)[kStripRows][kStripColumns]) {
  __m256 total[kStripRows][kStripColumns];
  for (auto& row : total) {
    for (__m256& sum : row) sum = _mm256_setzero_ps();
  }
  for (int64_t k = 0; k < kBlockK; k += 8) {
    __m256 right[kStripColumns];
    for (int c = 0; c < kStripColumns; ++c) right[c] = _mm256_loadu_ps(b + c * kBlockK + k);
    for (int r = 0; r < kStripRows; ++r) {
      const __m256 left = _mm256_loadu_ps(a + r * kBlockK + k);
      for (int c = 0; c < kStripColumns; ++c) total[r][c] = _mm256_fmadd_ps(left, right[c], total[r][c]);
    }
  }
  for (int r = 0; r < kStripRows; ++r) {
    for (int c = 0; c < kStripColumns; ++c) sums[r][c] = add_lanes(total[r][c]);
  }
}
SGL_AVX2 inline void avx2_strip(const int16_t* a, const int16_t* b, int32_t (&sums)[kStripRows][kStripColumns]) {
  __m256i total[kStripRows][kStripColumns];
  for (auto& row : total) {
    for (__m256i& sum : row) sum = _mm256_setzero_si256();
  }
  for (int64_t k = 0; k < kBlockK; k += 16) {
    __m256i right[kStripColumns];
    for (int c = 0; c < kStripColumns; ++c) {
      right[c] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + c * kBlockK + k));
    }
    for (int r = 0; r < kStripRows; ++r) {
      const __m256i left = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + r * kBlockK + k));
      for (int c = 0; c < kStripColumns; ++c) {
        total[r][c] = _mm256_add_epi32(total[r][c], _mm256_madd_epi16(left, right[c]));
      }
    }
  }
  for (int r = 0; r < kStripRows; ++r) {
    for (int c = 0; c < kStripColumns; ++c) sums[r][c] = add_lanes(total[r][c]);
  }
}

template <class Decoded, class Sum>
void multiply_strip(const Decoded* a, const Decoded* b, int rows, int columns, Sum (&sums)[kStripRows][kStripColumns]) {
  has_avx2() ? avx2_strip(a, b, sums) : plain_strip(a, b, rows, columns, sums);
}

#else

template <class Decoded, class Sum>
void multiply_strip(const Decoded* a, const Decoded* b, int rows, int columns, Sum (&sums)[kStripRows][kStripColumns]) {
  plain_strip(a, b, rows, columns, sums);
}

#endif

// sum_l a[i, l] * b[j, l] for i < m, j < n, l < k.
//   decode_a(i, l, count, Decoded* to)   writes a[i, l] to a[i, l + count - 1]; l is a multiple of kBlockK
//   decode_b(j, l, count, Decoded* to)   the same of b
//   block(i, j, l, sum)                  what the sum over the block from l on adds to the total
//   store(i, j, sum)                     takes a total
template <class Decoded, class DecodeA, class DecodeB, class Block, class Store>
void tiled_mm(int64_t m, int64_t n, int64_t k, const DecodeA& decode_a, const DecodeB& decode_b, const Block& block,
              const Store& store) {
  using Sum = std::conditional_t<std::is_same_v<Decoded, float>, float, int32_t>;
  const auto multiply_tile = [&](int64_t first_row, int64_t first_column) {
    const int64_t rows = std::min(kTileRows, m - first_row), columns = std::min(kTileColumns, n - first_column);
    alignas(32) Decoded a[kTileRows * kBlockK] = {}, b[kTileColumns * kBlockK] = {};
    Sum totals[kTileRows][kTileColumns] = {};
    for (int64_t l = 0; l < k; l += kBlockK) {
      const int64_t count = std::min(kBlockK, k - l);
      for (int64_t row = 0; row < rows; ++row) {
        decode_a(first_row + row, l, count, a + row * kBlockK);
        std::fill(a + row * kBlockK + count, a + (row + 1) * kBlockK, Decoded(0));
      }
      for (int64_t column = 0; column < columns; ++column) {
        decode_b(first_column + column, l, count, b + column * kBlockK);
        std::fill(b + column * kBlockK + count, b + (column + 1) * kBlockK, Decoded(0));
      }
      for (int64_t row = 0; row < rows; row += kStripRows) {
        for (int64_t column = 0; column < columns; column += kStripColumns) {
          const int strip_rows = static_cast<int>(std::min<int64_t>(kStripRows, rows - row));
          const int strip_columns = static_cast<int>(std::min<int64_t>(kStripColumns, columns - column));
          Sum sums[kStripRows][kStripColumns];
          multiply_strip(a + row * kBlockK, b + column * kBlockK, strip_rows, strip_columns, sums);
          for (int r = 0; r < strip_rows; ++r) {
            for (int c = 0; c < strip_columns; ++c) {
              totals[row + r][column + c] += block(first_row + row + r, first_column + column + c, l, sums[r][c]);
            }
          }
        }
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        store(first_row + row, first_column + column, totals[row][column]);
      }
    }
  };
  const int64_t row_tiles = (m + kTileRows - 1) / kTileRows, column_tiles = (n + kTileColumns - 1) / kTileColumns;
  parallel_for(row_tiles * column_tiles, /*grain=*/1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      multiply_tile(tile % row_tiles * kTileRows, tile / row_tiles * kTileColumns);
    }
  });
}

// For sums that need nothing but adding.
struct WholeSums {
  template <class Sum>
  Sum operator()(int64_t, int64_t, int64_t, Sum sum) const {
    return sum;
  }
};

}  // namespace sgl_kernel::cpu
