// The product of a 16-bit float matrix and a weight of a few bits on the CPU, whatever the weight's layout.
//
// A task has kPanelColumns columns and up to kPanelRows rows of the output. It walks K in blocks: the weight's panel is
// decoded to f32 once for all its rows, and multiplied with FMAs; a block's sums are added up apart, so that rounding
// errors grow with kPanelDepth + K / kPanelDepth terms and not with K.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/base/cpu_avx2.h"
#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"

namespace sgl_kernel::cpu {

// Panels, 16 KiB of f32 each for weight and rows, stay in the first-level cache.
inline constexpr int64_t kPanelDepth = 64, kPanelColumns = 64, kPanelRows = 64;

template <class T>
struct MixedProduct {
  T* output;  // [m, n], rows output_stride apart
  int64_t output_stride;
  const T* a;  // [m, k], rows a_stride apart
  int64_t a_stride;
  const int32_t* a_columns;  // [k]: which column of a meets row k of the weight; null if the same
  int64_t m, n, k;
  float factor;  // of every result
};

// sums[r][c] += sum over k < depth of a[r][k] * weight[k][c]; rows of kPanelDepth and of kPanelColumns numbers.
inline void plain_panel_product(const float* a, const float* weight, int64_t rows, int64_t depth, float* sums) {
  for (int64_t r = 0; r < rows; ++r) {
    float block[kPanelColumns] = {};
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t c = 0; c < kPanelColumns; ++c) {
        block[c] += a[r * kPanelDepth + k] * weight[k * kPanelColumns + c];
      }
    }
    for (int64_t c = 0; c < kPanelColumns; ++c) sums[r * kPanelColumns + c] += block[c];
  }
}

#ifdef SGL_AVX2
template <int kRows>
SGL_AVX2 void avx2_panel_strip(const float* a, const float* weight, int64_t depth, float* sums) {
  for (int64_t c = 0; c < kPanelColumns; c += 16) {
    __m256 block[kRows][2];
    for (int r = 0; r < kRows; ++r) block[r][0] = block[r][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < depth; ++k) {
      const __m256 left = load8(weight + k * kPanelColumns + c), right = load8(weight + k * kPanelColumns + c + 8);
      for (int r = 0; r < kRows; ++r) {
        const __m256 factor = _mm256_set1_ps(a[r * kPanelDepth + k]);
        block[r][0] = _mm256_fmadd_ps(factor, left, block[r][0]);
        block[r][1] = _mm256_fmadd_ps(factor, right, block[r][1]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      float* const sum = sums + r * kPanelColumns + c;
      store8(sum, _mm256_add_ps(load8(sum), block[r][0]));
      store8(sum + 8, _mm256_add_ps(load8(sum + 8), block[r][1]));
    }
  }
}

SGL_AVX2 inline void avx2_panel_product(const float* a, const float* weight, int64_t rows, int64_t depth, float* sums) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    avx2_panel_strip<4>(a + r * kPanelDepth, weight, depth, sums + r * kPanelColumns);
  }
  for (; r < rows; ++r) avx2_panel_strip<1>(a + r * kPanelDepth, weight, depth, sums + r * kPanelColumns);
}
#endif

// decode(first_k, depth, first_n, panel) writes rows first_k … of the columns first_n … to panel
// [depth][kPanelColumns]; columns beyond n may hold anything finite.
template <class T, class Decode>
void multiply_mixed(const MixedProduct<T>& product, const Decode& decode) {
  const int64_t column_tasks = (product.n + kPanelColumns - 1) / kPanelColumns;
  const int64_t row_tasks = (product.m + kPanelRows - 1) / kPanelRows;
  parallel_for(column_tasks * row_tasks, /*grain=*/1, [&](int64_t begin, int64_t end) {
    alignas(64) float a[kPanelRows * kPanelDepth], weight[kPanelDepth * kPanelColumns];
    alignas(64) float sums[kPanelRows * kPanelColumns];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first_row = task / column_tasks * kPanelRows, first_n = task % column_tasks * kPanelColumns;
      const int64_t rows = std::min(kPanelRows, product.m - first_row);
      const int64_t columns = std::min(kPanelColumns, product.n - first_n);
      std::fill_n(sums, rows * kPanelColumns, 0.0f);
      for (int64_t first_k = 0; first_k < product.k; first_k += kPanelDepth) {
        const int64_t depth = std::min(kPanelDepth, product.k - first_k);
        decode(first_k, depth, first_n, weight);
        for (int64_t r = 0; r < rows; ++r) {
          const T* const row = product.a + (first_row + r) * product.a_stride;
          for (int64_t k = 0; k < depth; ++k) {
            const int64_t column = product.a_columns == nullptr ? first_k + k : product.a_columns[first_k + k];
            a[r * kPanelDepth + k] = static_cast<float>(row[column]);
          }
        }
#ifdef SGL_AVX2
        if (has_avx2()) {
          avx2_panel_product(a, weight, rows, depth, sums);
          continue;
        }
#endif
        plain_panel_product(a, weight, rows, depth, sums);
      }
      for (int64_t r = 0; r < rows; ++r) {
        T* const row = product.output + (first_row + r) * product.output_stride + first_n;
        for (int64_t c = 0; c < columns; ++c) row[c] = static_cast<T>(sums[r * kPanelColumns + c] * product.factor);
      }
    }
  });
}

}  // namespace sgl_kernel::cpu
