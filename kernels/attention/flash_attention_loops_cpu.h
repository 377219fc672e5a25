// The inner loops of attention on the CPU, plain and with AVX2, over keys and values of any of the float types.
//
// Both have the same functions; a row's result depends on neither kRows nor the other rows. Dimensions are multiples of
// 8, and so are the bounds `begin` and `end` of the scores.
#pragma once

#include <cmath>

#include "kernels/base/cpu_avx2.h"
#include "kernels/base/float_types.h"

namespace sgl_kernel::cpu {
namespace {

constexpr int kBlockKeys = 64;
constexpr int kMaxQueryDim = 576;  // floats from one query row to the next
constexpr int kRowsAtOnce = 3;     // query rows: 3 by 4 sums are as many as stay in AVX2's 16 registers

struct PlainLoops {
  template <class T>
  static void to_float(float* target, const T* source, int n) {
    for (int i = 0; i < n; ++i) target[i] = static_cast<float>(source[i]);
  }

  template <class T>
  static void from_float(T* target, const float* source, float factor, int n) {
    for (int i = 0; i < n; ++i) target[i] = static_cast<T>(source[i] * factor);
  }

  // sum = factor * sum + next_factor * next
  static void add_scaled(float* sum, float factor, const float* next, float next_factor, int n) {
    for (int i = 0; i < n; ++i) sum[i] = sum[i] * factor + next[i] * next_factor;
  }

  template <class T>
  static void prefetch_row(const T*, int) {}

  // scores[r][j] = scale * queries[r] · keys[j], the rows of queries kMaxQueryDim apart
  template <int kRows, class T>
  static void scores(float (*scores)[kBlockKeys], const float* queries, const T* const* keys, int begin, int end,
                     float scale, int dim) {
    for (int r = 0; r < kRows; ++r) {
      for (int j = begin; j < end; ++j) {
        float sum = 0.0f;
        for (int d = 0; d < dim; ++d) sum += queries[r * kMaxQueryDim + d] * static_cast<float>(keys[j][d]);
        scores[r][j] = sum * scale;
      }
    }
  }

  // The largest score, or `max` if that is larger; a NaN is none.
  static float largest(const float* scores, int begin, int end, float max) {
    for (int j = begin; j < end; ++j) max = scores[j] > max ? scores[j] : max;
    return max;
  }

  // Turns scores into exp(score - max); returns their sum.
  static float exponentials(float* scores, int begin, int end, float max) {
    float sum = 0.0f;
    for (int j = begin; j < end; ++j) sum += scores[j] = std::exp(scores[j] - max);
    return sum;
  }

  // outputs[r] = sum_j weights[r][j] * values[j], the rows of outputs `stride` apart; any begin and end
  template <int kRows, class T>
  static void weighted_sums(float* outputs, int stride, const float (*weights)[kBlockKeys], const T* const* values,
                            int begin, int end, int dim) {
    for (int r = 0; r < kRows; ++r) {
      for (int d = 0; d < dim; ++d) {
        float sum = 0.0f;
        for (int j = begin; j < end; ++j) sum += weights[r][j] * static_cast<float>(values[j][d]);
        outputs[r * stride + d] = sum;
      }
    }
  }
};

#if defined(__x86_64__)
struct Avx2Loops {
  template <class T>
  SGL_AVX2 static void to_float(float* target, const T* source, int n) {
    for (int i = 0; i < n; i += 8) store8(target + i, load8(source + i));
  }

  template <class T>
  SGL_AVX2 static void from_float(T* target, const float* source, float factor, int n) {
    for (int i = 0; i < n; i += 8) store8(target + i, _mm256_mul_ps(load8(source + i), _mm256_set1_ps(factor)));
  }

  SGL_AVX2 static void add_scaled(float* sum, float factor, const float* next, float next_factor, int n) {
    for (int i = 0; i < n; i += 8) {
      const __m256 scaled = _mm256_mul_ps(load8(sum + i), _mm256_set1_ps(factor));
      store8(sum + i, _mm256_fmadd_ps(load8(next + i), _mm256_set1_ps(next_factor), scaled));
    }
  }

  // Begins to fetch `dim` elements. Rows of one head lie apart, which the hardware's prefetching makes little of.
  template <class T>
  static void prefetch_row(const T* row, int dim) {
    constexpr int kLine = 64 / sizeof(T);  // elements of a cache line
    for (int d = 0; d < dim; d += kLine) __builtin_prefetch(row + d);
  }

  template <int kRows, class T>
  SGL_AVX2 static void scores(float (*scores)[kBlockKeys], const float* queries, const T* const* keys, int begin,
                              int end, float scale, int dim) {
    constexpr int kKeys = kRows == 1 ? 8 : 4;  // sums enough to hide the latency of a multiply-add
    for (int j = begin; j < end; j += kKeys) {
      __m256 sums[kRows][kKeys];
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) sums[r][i] = _mm256_setzero_ps();
      }
      for (int d = 0; d < dim; d += 8) {
        __m256 query[kRows];
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r) query[r] = load8(queries + r * kMaxQueryDim + d);
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) {
          const __m256 key = load8(keys[j + i] + d);
#pragma GCC unroll 3
          for (int r = 0; r < kRows; ++r) sums[r][i] = _mm256_fmadd_ps(query[r], key, sums[r][i]);
        }
      }
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int i = 0; i < kKeys; i += 4) {
          // The sums of four vectors: pairs, then fours, then the two halves.
          const __m256 fours = _mm256_hadd_ps(_mm256_hadd_ps(sums[r][i], sums[r][i + 1]),
                                              _mm256_hadd_ps(sums[r][i + 2], sums[r][i + 3]));
          const __m128 products = _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1));
          _mm_storeu_ps(scores[r] + j + i, _mm_mul_ps(products, _mm_set1_ps(scale)));
        }
      }
    }
  }

  SGL_AVX2 static float largest(const float* scores, int begin, int end, float max) {
    __m256 largest = _mm256_set1_ps(max);
    // Of a NaN and a number, maxps gives its second operand.
    for (int j = begin; j < end; j += 8) largest = _mm256_max_ps(load8(scores + j), largest);
    alignas(32) float lanes[8];
    store8(lanes, largest);
    for (const float lane : lanes) max = lane > max ? lane : max;
    return max;
  }

  SGL_AVX2 static float exponentials(float* scores, int begin, int end, float max) {
    __m256 sum = _mm256_setzero_ps();
    for (int j = begin; j < end; j += 8) {
      const __m256 power = exp8(_mm256_sub_ps(load8(scores + j), _mm256_set1_ps(max)));
      store8(scores + j, power);
      sum = _mm256_add_ps(sum, power);
    }
    alignas(32) float lanes[8];
    store8(lanes, sum);
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
  }

  template <int kRows, class T>
  SGL_AVX2 static void weighted_sums(float* outputs, int stride, const float (*weights)[kBlockKeys],
                                     const T* const* values, int begin, int end, int dim) {
    constexpr int kVectors = kRows == 1 ? 8 : 4;  // of a row, which stay in registers
    int d = 0;
    for (; d + 8 * kVectors <= dim; d += 8 * kVectors) {
      sum_columns<kRows, kVectors>(outputs + d, stride, weights, values, begin, end, d);
    }
    for (; d < dim; d += 8) sum_columns<kRows, 1>(outputs + d, stride, weights, values, begin, end, d);
  }

 private:
  template <int kRows, int kVectors, class T>
  SGL_AVX2 static void sum_columns(float* outputs, int stride, const float (*weights)[kBlockKeys],
                                   const T* const* values, int begin, int end, int first) {
    __m256 sums[kRows][kVectors];
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) sums[r][i] = _mm256_setzero_ps();
    }
    for (int j = begin; j < end; ++j) {
      __m256 weight[kRows];
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r) weight[r] = _mm256_broadcast_ss(weights[r] + j);
      const T* value = values[j] + first;
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) {
        const __m256 eight = load8(value + 8 * i);
#pragma GCC unroll 3
        for (int r = 0; r < kRows; ++r) sums[r][i] = _mm256_fmadd_ps(weight[r], eight, sums[r][i]);
      }
    }
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) store8(outputs + r * stride + 8 * i, sums[r][i]);
    }
  }
};
#endif

}  // namespace
}  // namespace sgl_kernel::cpu
