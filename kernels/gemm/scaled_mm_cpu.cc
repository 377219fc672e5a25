// Scaled products of 8-bit matrices on the CPU.
//
// A task has a tile of kTileRows x kTileColumns of the output and walks K in blocks. Of each block the operands are
// decoded once, e4m3 to f32 and int8 to int16, and multiplied by dot products of kStrip vectors along K.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/base/cpu_avx2.h"
#include "kernels/base/float_types.h"
#include "kernels/base/parallel.h"
#include "kernels/gemm/scaled_mm_params.h"

namespace sgl_kernel::cpu {
namespace {

constexpr int64_t kBlockK = 128;  // of a decoded block; also what a block scale holds for
static_assert(kBlockK == kScaleBlock);
// The decoded blocks of a tile, 36 KiB of f32, stay near the first-level cache.
constexpr int64_t kTileRows = 24, kTileColumns = 48;
// Rows by columns of sums that are in registers at a time.
constexpr int kStripRows = 4, kStripColumns = 3;

struct E4m3 {
  using Decoded = float;
  using Sum = float;
};
struct Int8 {
  using Decoded = int16_t;
  using Sum = int32_t;
};

float decode_e4m3(uint8_t bits) {
  // The exponent's bias is 7 in e4m3 and 127 in f32; so shifted, subnormals come right, too.
  constexpr float kRebias = 1.329227995784916e36f;  // 2^120
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24, magnitude = bits & 0x7f;
  if (magnitude == 0x7f) return internal::float_of(sign | 0x7fc00000);  // NaN
  return internal::float_of(sign | magnitude << 20) * kRebias;
}

void plain_decode(const uint8_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = decode_e4m3(from[i]);
}
void plain_decode(const uint8_t* from, int64_t count, int16_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<int8_t>(from[i]);
}

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

SGL_AVX2 void avx2_decode(const uint8_t* from, int64_t count, float* to) {
  const __m256 rebias = _mm256_set1_ps(1.329227995784916e36f);
  const __m256i most = _mm256_set1_epi32(0x7f), quiet_nan = _mm256_set1_epi32(0x7fc00000);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i bits = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i)));
    const __m256i magnitude = _mm256_and_si256(bits, most);
    const __m256i sign = _mm256_slli_epi32(_mm256_xor_si256(bits, magnitude), 24);
    const __m256 value = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(magnitude, 20)), rebias);
    const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi32(magnitude, most), quiet_nan);
    _mm256_storeu_ps(to + i, _mm256_or_ps(value, _mm256_castsi256_ps(_mm256_or_si256(sign, nan))));
  }
  plain_decode(from + i, count - i, to + i);
}

SGL_AVX2 void avx2_decode(const uint8_t* from, int64_t count, int16_t* to) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_cvtepi8_epi16(bytes));
  }
  plain_decode(from + i, count - i, to + i);
}

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
SGL_AVX2 void avx2_strip(const float* a, const float* b, float (&sums)[kStripRows][kStripColumns]) {
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
SGL_AVX2 void avx2_strip(const int16_t* a, const int16_t* b, int32_t (&sums)[kStripRows][kStripColumns]) {
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

template <class Decoded>
void decode(const uint8_t* from, int64_t count, Decoded* to) {
  has_avx2() ? avx2_decode(from, count, to) : plain_decode(from, count, to);
}
template <class Decoded, class Sum>
void multiply_strip(const Decoded* a, const Decoded* b, int rows, int columns, Sum (&sums)[kStripRows][kStripColumns]) {
  has_avx2() ? avx2_strip(a, b, sums) : plain_strip(a, b, rows, columns, sums);
}

#else

template <class Decoded>
void decode(const uint8_t* from, int64_t count, Decoded* to) {
  plain_decode(from, count, to);
}
template <class Decoded, class Sum>
void multiply_strip(const Decoded* a, const Decoded* b, int rows, int columns, Sum (&sums)[kStripRows][kStripColumns]) {
  plain_strip(a, b, rows, columns, sums);
}

#endif

// Rows of a block from memory, with zeros behind `count`.
template <class Decoded>
void decode_rows(const void* matrix, int64_t stride, int64_t first_row, int64_t rows, int64_t first_k, int64_t count,
                 Decoded* to) {
  for (int64_t row = 0; row < rows; ++row, to += kBlockK) {
    decode(static_cast<const uint8_t*>(matrix) + (first_row + row) * stride + first_k, count, to);
    std::fill(to + count, to + kBlockK, Decoded(0));
  }
}

template <class Operand, class Output>
void multiply_tile(const ScaledMmParams& params, int64_t first_row, int64_t first_column) {
  using Decoded = typename Operand::Decoded;
  using Sum = typename Operand::Sum;
  const int64_t rows = std::min(kTileRows, params.m - first_row);
  const int64_t columns = std::min(kTileColumns, params.n - first_column);
  alignas(32) Decoded a[kTileRows * kBlockK] = {}, b[kTileColumns * kBlockK] = {};
  Sum totals[kTileRows][kTileColumns] = {};
  for (int64_t k = 0; k < params.k; k += kBlockK) {
    const int64_t count = std::min(kBlockK, params.k - k);
    decode_rows(params.a, params.a_stride, first_row, rows, k, count, a);
    decode_rows(params.b, params.b_stride, first_column, columns, k, count, b);
    for (int64_t row = 0; row < rows; row += kStripRows) {
      for (int64_t column = 0; column < columns; column += kStripColumns) {
        const int strip_rows = static_cast<int>(std::min<int64_t>(kStripRows, rows - row));
        const int strip_columns = static_cast<int>(std::min<int64_t>(kStripColumns, columns - column));
        Sum sums[kStripRows][kStripColumns];
        multiply_strip(a + row * kBlockK, b + column * kBlockK, strip_rows, strip_columns, sums);
        for (int r = 0; r < strip_rows; ++r) {
          for (int c = 0; c < strip_columns; ++c) {
            Sum sum = sums[r][c];
            if constexpr (std::is_same_v<Operand, E4m3>) {
              if (params.blockwise) {
                const int64_t block = k / kBlockK;
                sum *= params.a_block_scales.at(first_row + row + r, block) *
                       params.b_block_scales.at(block, (first_column + column + c) / kScaleBlock);
              }
            }
            totals[row + r][column + c] += sum;
          }
        }
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    Output* output = static_cast<Output*>(params.output) + (first_row + row) * params.output_stride + first_column;
    for (int64_t column = 0; column < columns; ++column) {
      float value = static_cast<float>(totals[row][column]);
      if (!params.blockwise) {
        value *= params.row_scales.at(first_row + row) * params.column_scales.at(first_column + column);
      }
      if (params.bias != nullptr)
        value += static_cast<float>(static_cast<const Output*>(params.bias)[first_column + column]);
      output[column] = Output(value);
    }
  }
}

template <class Operand, class Output>
void multiply_tiles(const ScaledMmParams& params) {
  const int64_t row_tiles = (params.m + kTileRows - 1) / kTileRows;
  const int64_t column_tiles = (params.n + kTileColumns - 1) / kTileColumns;
  parallel_for(row_tiles * column_tiles, /*grain=*/1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      multiply_tile<Operand, Output>(params, tile % row_tiles * kTileRows, tile / row_tiles * kTileColumns);
    }
  });
}

}  // namespace

Status scaled_mm(const ScaledMmParams& params, Stream) {
  const bool is_int8 = params.operand == DType::kI8;
  if (params.output_dtype == DType::kF16) {
    is_int8 ? multiply_tiles<Int8, Half>(params) : multiply_tiles<E4m3, Half>(params);
  } else {
    is_int8 ? multiply_tiles<Int8, BFloat16>(params) : multiply_tiles<E4m3, BFloat16>(params);
  }
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
