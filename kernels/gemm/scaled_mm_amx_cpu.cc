// Scaled products of 8-bit matrices with AMX: int8 as it is, with exact sums; e4m3 and e5m2 decoded to bf16, which
// holds them exactly, with sums in f32.
//
// A task has up to kTaskRows x kTaskColumns of the output and walks K in blocks of kBlockBytes. Of each block the
// operands are decoded once; B as it lies, but of A an instruction wants pairs of bf16 numbers, or fours of int8, of 16
// rows side by side: a transpose. So tiles of the output are computed transposed, and turned when they are stored.
//
// Errors of f32 sums. TDPBF16PS adds even and odd products apart, 16 each, adds the two sums to one another and the
// result to the tile. The products are exact, of mantissas of 4 bits each, and the first addition of each chain is to
// 0. So s instructions have no path of more than 15 + 1 + (s - 1) roundings. That is 19 for the 128 products that have
// a scale, and 2 more for the scales, or 23 for a block of 256 without; each addition to the total is one more. The
// bound of tiled_mm_cpu.h, (24 + K / 128) * 2^-24 of the sum of magnitudes, holds for both. The instruction takes
// subnormal numbers for 0, and there are none: the least of the decoded numbers is 2^-16, and sums are multiples of its
// square.
//
// Measured on 16 cores of a Xeon with AMX at 2.9 GHz, 2026-11-23, N = K = 4096, in µs beside torch 2.11's bf16 product:
//   rows of A                    1      4     16     64    256   1024
//   torch, bf16                301    396    422    733   1777   7901
//   int8_scaled_mm             180    171    182    316    819   3110
//   fp8_scaled_mm              350    343    438    666   1829   5573
//   fp8_blockwise_scaled_mm    283    317    329    701   2130   6025
//   bmm_fp8                    242    253    269    597   1711   5503
//   int8_scaled_mm, AVX2        97    255   1089
//   fp8_scaled_mm, AVX2        248    480   1672
#include "kernels/gemm/scaled_mm_amx_cpu.h"

#include "kernels/base/cpu_avx2.h"

// The oldest compilers whose <immintrin.h> has it all.
#if defined(SGL_AVX2) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)

#if !defined(__clang__)
// Of registers that GCC 12's own <immintrin.h> leaves undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/base/parallel.h"

// What every processor with AMX has besides. Lambdas do not inherit the mark.
#define SGL_AMX \
  __attribute__((target("amx-tile,amx-int8,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma,f16c")))

namespace sgl_kernel::cpu {
namespace {

constexpr int64_t kEdge = 16;      // rows of a tile, and 32-bit elements of its rows
constexpr int64_t kRowBytes = 64;  // of a tile
constexpr int64_t kTileBytes = kEdge * kRowBytes;
constexpr int64_t kBlockBytes = 512;  // along K, decoded: 256 bf16 numbers or 512 of int8
constexpr int64_t kSteps = kBlockBytes / kRowBytes;
// 64 KiB of A and up to 128 KiB of B, decoded, and 128 KiB of sums, all on the stack, stay in a second-level cache.
constexpr int64_t kTaskRows = 128, kTaskColumns = 256, kFewestTaskColumns = 64;
constexpr int64_t kPair = 2 * kEdge;  // two tiles by two are multiplied at a time

static_assert(kBlockBytes / 2 % kScaleBlock == 0 && kScaleBlock % kPair == 0, "a pair of tiles has one scale of B");

int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// The bf16 number, in two bytes, for the lower 7 bits of an 8-bit one.
struct alignas(64) Table {
  uint8_t low[128], high[128];
};

// Exponents are biased by kBias; the largest, all ones, are e5m2's infinities and NaN, and e4m3's NaN if all bits are.
template <int kMantissaBits, int kBias>
constexpr Table make_table() {
  constexpr int kMantissas = 1 << kMantissaBits, kLargest = 0x7f;
  constexpr int kSpecial = kMantissaBits == 2 ? kLargest - 3 : kLargest;
  Table table = {};
  for (int number = 0; number <= kLargest; ++number) {
    int exponent = number / kMantissas, mantissa = number % kMantissas, bits = 0;
    if (number >= kSpecial) {
      bits = 0x7f80 | (number == kLargest ? 0x40 : mantissa << (7 - kMantissaBits));
    } else if (number > 0) {
      if (exponent == 0) {  // subnormal; its numbers are normal in bf16
        for (exponent = 1; mantissa < kMantissas; --exponent) mantissa *= 2;
        mantissa -= kMantissas;
      }
      bits = (exponent - kBias + 127) << 7 | mantissa << (7 - kMantissaBits);
    }
    table.low[number] = static_cast<uint8_t>(bits);
    table.high[number] = static_cast<uint8_t>(bits >> 8);
  }
  return table;
}

constexpr Table kE4M3Table = make_table<3, 7>(), kE5M2Table = make_table<2, 15>();

// A matrix [rows, K] of 8-bit numbers.
struct Matrix {
  const uint8_t* data;
  int64_t stride;
  const Table* table;  // of floats
};

// The first `count` of 64 bytes, and zeros.
SGL_AMX inline __m512i load_bytes(const uint8_t* from, int64_t count) {
  const __mmask64 mask = count >= kRowBytes ? ~__mmask64{0} : (__mmask64{1} << std::max<int64_t>(count, 0)) - 1;
  return _mm512_maskz_loadu_epi8(mask, from);
}

// A block of each of some rows: `count` numbers, and zeros. Of floats each 16 numbers are in two parts, 8 of them 64
// bytes after the others: sums do not mind, if A and B agree.
template <bool kInteger>
SGL_AMX void decode(const Matrix& matrix, int64_t first_row, int64_t rows, int64_t first, int64_t count, uint8_t* to) {
  __m512i low[2] = {}, high[2] = {};
  if constexpr (!kInteger) {
    for (int i = 0; i < 2; ++i) {
      low[i] = _mm512_load_si512(matrix.table->low + i * kRowBytes);
      high[i] = _mm512_load_si512(matrix.table->high + i * kRowBytes);
    }
  }
  const uint8_t* from = matrix.data + first_row * matrix.stride + first;
  for (int64_t row = 0; row < rows; ++row, from += matrix.stride, to += kBlockBytes) {
    if constexpr (kInteger) {
      for (int64_t i = 0; i < kBlockBytes; i += kRowBytes) {
        _mm512_store_si512(to + i, load_bytes(from + i, count - i));
      }
    } else {
      for (int64_t i = 0; i < kBlockBytes / 2; i += kRowBytes) {
        const __m512i bytes = load_bytes(from + i, count - i);
        const __m512i lower = _mm512_permutex2var_epi8(low[0], bytes, low[1]);
        const __m512i sign = _mm512_and_si512(bytes, _mm512_set1_epi8(-0x80));
        const __m512i upper = _mm512_or_si512(_mm512_permutex2var_epi8(high[0], bytes, high[1]), sign);
        _mm512_store_si512(to + 2 * i, _mm512_unpacklo_epi8(lower, upper));
        _mm512_store_si512(to + 2 * i + kRowBytes, _mm512_unpackhi_epi8(lower, upper));
      }
    }
  }
}

// to[c][r] = from[r][c], 16 x 16 of 32 bits; rows of `from` are some bytes apart, those of `to` lie one after another.
SGL_AMX void transpose(const void* from, int64_t from_stride, void* to) {
  __m512i x[kEdge], y[kEdge];
  for (int i = 0; i < kEdge; ++i) x[i] = _mm512_load_si512(static_cast<const uint8_t*>(from) + i * from_stride);
  for (int i = 0; i < kEdge; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < kEdge; i += 4) {
    for (int half = 0; half < 2; ++half) {
      x[i + 2 * half] = _mm512_unpacklo_epi64(y[i + half], y[i + 2 + half]);
      x[i + 2 * half + 1] = _mm512_unpackhi_epi64(y[i + half], y[i + 2 + half]);
    }
  }
  // Of x[4 g + c] lane l, 128 bits, has rows 4 g to 4 g + 3 of column 4 l + c.
  constexpr int kEvenLanes = 0x88, kOddLanes = 0xdd;
  __m512i* const columns = static_cast<__m512i*>(to);
  for (int c = 0; c < 4; ++c) {
    const __m512i upper_even = _mm512_shuffle_i32x4(x[c], x[4 + c], kEvenLanes);
    const __m512i lower_even = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], kEvenLanes);
    const __m512i upper_odd = _mm512_shuffle_i32x4(x[c], x[4 + c], kOddLanes);
    const __m512i lower_odd = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], kOddLanes);
    _mm512_store_si512(columns + c, _mm512_shuffle_i32x4(upper_even, lower_even, kEvenLanes));
    _mm512_store_si512(columns + 4 + c, _mm512_shuffle_i32x4(upper_odd, lower_odd, kEvenLanes));
    _mm512_store_si512(columns + 8 + c, _mm512_shuffle_i32x4(upper_even, lower_even, kOddLanes));
    _mm512_store_si512(columns + 12 + c, _mm512_shuffle_i32x4(upper_odd, lower_odd, kOddLanes));
  }
}

// The tiles of the output are numbers 0 to 3, those of B 4 and 5, those of A 6 and 7, all of the largest size.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {kRowBytes, kRowBytes, kRowBytes, kRowBytes, kRowBytes, kRowBytes, kRowBytes, kRowBytes};
  uint8_t rows[16] = {kEdge, kEdge, kEdge, kEdge, kEdge, kEdge, kEdge, kEdge};
};
constexpr TileConfig kTileConfig;

template <bool kInteger>
using Sum = std::conditional_t<kInteger, int32_t, float>;

// The sums of products, over some steps, of two tiles' rows of B, kBlockBytes apart, with one or two columns of A's
// tiles, kSteps apart: tiles for A's first column, then its second.
template <bool kInteger, bool kTwo>
SGL_AMX void multiply_tiles(const uint8_t* b, const uint8_t* a, int64_t steps, Sum<kInteger> (*sums)[kEdge * kEdge]) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(4, b + step * kRowBytes, kBlockBytes);
    _tile_loadd(5, b + kEdge * kBlockBytes + step * kRowBytes, kBlockBytes);
    _tile_loadd(6, a + step * kTileBytes, kRowBytes);
    if constexpr (kTwo) _tile_loadd(7, a + (kSteps + step) * kTileBytes, kRowBytes);
    if constexpr (kInteger) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 5, 6);
      if constexpr (kTwo) {
        _tile_dpbssd(2, 4, 7);
        _tile_dpbssd(3, 5, 7);
      }
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
      if constexpr (kTwo) {
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, sums[0], kRowBytes);
  _tile_stored(1, sums[1], kRowBytes);
  if constexpr (kTwo) {
    _tile_stored(2, sums[2], kRowBytes);
    _tile_stored(3, sums[3], kRowBytes);
  }
}

// totals += sums, a tile each, the latter times scales of A's rows and of the block of B if there are any. One scale
// after the other: the product of two that are tiny would be 0.
SGL_AMX void add_tile(const float* sums, const float* a_scales, float b_scale, float* totals) {
  const bool scaled = a_scales != nullptr;
  const __m512 of_a = scaled ? _mm512_load_ps(a_scales) : _mm512_setzero_ps(), of_b = _mm512_set1_ps(b_scale);
  for (int64_t i = 0; i < kEdge * kEdge; i += kEdge) {
    __m512 sum = _mm512_load_ps(sums + i);
    if (scaled) sum = _mm512_mul_ps(_mm512_mul_ps(sum, of_a), of_b);
    _mm512_store_ps(totals + i, _mm512_add_ps(_mm512_load_ps(totals + i), sum));
  }
}
SGL_AMX void add_tile(const int32_t* sums, const float*, float, int32_t* totals) {
  for (int64_t i = 0; i < kEdge * kEdge; i += kEdge) {
    _mm512_store_si512(totals + i, _mm512_add_epi32(_mm512_load_si512(totals + i), _mm512_load_si512(sums + i)));
  }
}

SGL_AMX inline __m512 load16(const float* from) { return _mm512_load_ps(from); }
SGL_AMX inline __m512 load16(const int32_t* from) { return _mm512_cvtepi32_ps(_mm512_load_si512(from)); }

// Stores a tile of totals [column, row] as output, whose first element is [first_row, first_column].
template <class Sum, class Output>
SGL_AMX void store_tile(const ScaledMmParams& params, const Sum* totals, int64_t first_row, int64_t rows,
                        int64_t first_column, int64_t columns, Output* output) {
  alignas(64) Sum turned[kEdge * kEdge];
  alignas(64) float column_scales[kEdge] = {}, bias[kEdge] = {}, values[kEdge];
  transpose(totals, kRowBytes, turned);
  for (int64_t column = 0; column < columns; ++column) {
    const int64_t j = first_column + column;
    if (!params.blockwise) column_scales[column] = params.column_scales.at(j);
    if (params.bias != nullptr) bias[column] = static_cast<float>(static_cast<const Output*>(params.bias)[j]);
  }
  for (int64_t row = 0; row < rows; ++row) {
    __m512 value = load16(turned + row * kEdge);
    if (!params.blockwise) {
      value = _mm512_mul_ps(value, _mm512_set1_ps(params.row_scales.at(first_row + row)));
      value = _mm512_mul_ps(value, load16(column_scales));
    }
    // Said with a rounding, it is not fused with the product: results have the bits of other CPUs'.
    constexpr int kToNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    if (params.bias != nullptr) value = _mm512_add_round_ps(value, load16(bias), kToNearest);
    Output* const to = output + row * params.output_stride;
    if (columns == kEdge) {
      store8(to, _mm512_castps512_ps256(value));
      store8(to + 8, _mm512_extractf32x8_ps(value, 1));
    } else {
      _mm512_store_ps(values, value);
      for (int64_t column = 0; column < columns; ++column) to[column] = Output(values[column]);
    }
  }
}

// A part of the output of one batch.
struct Task {
  int64_t first_row, rows, first_column, columns;
};

// kTwo if there are more rows than a tile has.
template <bool kInteger, bool kTwo, class Output>
SGL_AMX void multiply_task(const ScaledMmParams& params, const Matrix& a, const Matrix& b, Output* output, Task task) {
  constexpr int64_t kRowTiles = kTwo ? kTaskRows / kEdge : 1, kColumnTiles = kTaskColumns / kEdge;
  constexpr int64_t kBlockK = kInteger ? kBlockBytes : kBlockBytes / 2;
  constexpr int64_t kTogether = kTwo ? 2 : 1;  // tiles of A
  alignas(64) uint8_t rows_of_b[kTaskColumns * kBlockBytes];
  alignas(64) uint8_t rows_of_a[kEdge * kBlockBytes];
  alignas(64) uint8_t tiles_of_a[kRowTiles][kSteps * kTileBytes];
  alignas(64) Sum<kInteger> totals[kColumnTiles][kRowTiles][kEdge * kEdge];
  alignas(64) Sum<kInteger> sums[4][kEdge * kEdge];
  alignas(64) float a_scales[kBlockK / kScaleBlock][kTaskRows] = {};
  const int64_t row_tiles = round_up(task.rows, kEdge * kTogether) / kEdge;
  const int64_t column_tiles = round_up(task.columns, kPair) / kEdge;
  for (int64_t j = 0; j < column_tiles; ++j) std::memset(totals[j], 0, row_tiles * sizeof(totals[j][0]));
  std::memset(rows_of_b + task.columns * kBlockBytes, 0, (column_tiles * kEdge - task.columns) * kBlockBytes);

  _tile_loadconfig(&kTileConfig);
  for (int64_t l = 0; l < params.k; l += kBlockK) {
    const int64_t count = std::min(kBlockK, params.k - l);
    for (int64_t i = 0; i < row_tiles; ++i) {
      const int64_t rows = std::clamp<int64_t>(task.rows - i * kEdge, 0, kEdge);
      decode<kInteger>(a, task.first_row + i * kEdge, rows, l, count, rows_of_a);
      std::memset(rows_of_a + rows * kBlockBytes, 0, (kEdge - rows) * kBlockBytes);
      for (int64_t step = 0; step < kSteps; ++step) {
        transpose(rows_of_a + step * kRowBytes, kBlockBytes, tiles_of_a[i] + step * kTileBytes);
      }
    }
    decode<kInteger>(b, task.first_column, task.columns, l, count, rows_of_b);
    // What has one scale, or all.
    const int64_t part = params.blockwise ? kScaleBlock : kBlockK, steps = part * kSteps / kBlockK;
    const int64_t parts = (count + part - 1) / part;
    for (int64_t p = 0; params.blockwise && p < parts; ++p) {
      for (int64_t row = 0; row < task.rows; ++row) {
        a_scales[p][row] = params.a_block_scales.at(task.first_row + row, l / kScaleBlock + p);
      }
    }
    // GCC does not know that loads of tiles read memory.
    asm volatile("" ::"r"(rows_of_b), "r"(tiles_of_a) : "memory");
    for (int64_t j = 0; j < column_tiles; j += 2) {
      const uint8_t* const pair_of_b = rows_of_b + j * kEdge * kBlockBytes;
      const int64_t scale_column = (task.first_column + j * kEdge) / kScaleBlock;
      for (int64_t i = 0; i < row_tiles; i += kTogether) {
        for (int64_t p = 0; p < parts; ++p) {
          const int64_t step = p * steps;
          multiply_tiles<kInteger, kTwo>(pair_of_b + step * kRowBytes, tiles_of_a[i] + step * kTileBytes, steps, sums);
          const float b_scale = params.blockwise ? params.b_block_scales.at(l / kScaleBlock + p, scale_column) : 1.0f;
          for (int64_t tile = 0; tile < 2 * kTogether; ++tile) {
            const int64_t row_tile = i + tile / 2;
            const float* const scales = params.blockwise ? a_scales[p] + row_tile * kEdge : nullptr;
            add_tile(sums[tile], scales, b_scale, totals[j + tile % 2][row_tile]);
          }
        }
      }
    }
  }
  _tile_release();

  for (int64_t i = 0; i * kEdge < task.rows; ++i) {
    for (int64_t j = 0; j * kEdge < task.columns; ++j) {
      const int64_t row = task.first_row + i * kEdge, column = task.first_column + j * kEdge;
      store_tile(params, totals[j][i], row, std::min(kEdge, task.rows - i * kEdge), column,
                 std::min(kEdge, task.columns - j * kEdge), output + row * params.output_stride + column);
    }
  }
}

const Table* table_of(DType dtype) { return dtype == DType::kF8E5M2 ? &kE5M2Table : &kE4M3Table; }

template <bool kInteger, class Output>
void multiply(const ScaledMmParams& params) {
  // Rows in equal parts; columns in parts that give each thread a few.
  const int64_t row_tasks = (params.m + kTaskRows - 1) / kTaskRows;
  const int64_t task_rows = round_up((params.m + row_tasks - 1) / row_tasks, kPair);
  const int64_t wanted = params.batches * row_tasks * params.n / (2 * num_threads());
  const int64_t task_columns = std::clamp(wanted / kPair * kPair, kFewestTaskColumns, kTaskColumns);
  const int64_t column_tasks = (params.n + task_columns - 1) / task_columns;
  const int64_t batch_tasks = row_tasks * column_tasks;
  parallel_for(params.batches * batch_tasks, /*grain=*/1, [&](int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; ++number) {
      const int64_t batch = number / batch_tasks, in_batch = number % batch_tasks;
      const int64_t first_row = in_batch % row_tasks * task_rows, first_column = in_batch / row_tasks * task_columns;
      const Task task = {first_row, std::min(task_rows, params.m - first_row), first_column,
                         std::min(task_columns, params.n - first_column)};
      const Matrix a = {static_cast<const uint8_t*>(params.a) + batch * params.a_batch_stride, params.a_stride,
                        table_of(params.a_dtype)};
      const Matrix b = {static_cast<const uint8_t*>(params.b) + batch * params.b_batch_stride, params.b_stride,
                        table_of(params.b_dtype)};
      Output* const output = static_cast<Output*>(params.output) + batch * params.output_batch_stride;
      params.m > kEdge ? multiply_task<kInteger, true>(params, a, b, output, task)
                       : multiply_task<kInteger, false>(params, a, b, output, task);
    }
  });
}

}  // namespace

bool has_amx() {
  static const bool has = [] {
    const bool has_avx512 = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
    if (!has_avx2() || !has_avx512 || !is_wanted("SGL_KERNEL_AMX")) return false;
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTile | kInt8;
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kAll) != kAll) return false;
    // A process asks for the tiles' registers once, for all of its threads; Linux before 5.16 knows neither.
    constexpr long kArchReqXcompPerm = 0x1023, kXTileData = 18;
    return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXTileData) == 0;
  }();
  return has;
}

void amx_scaled_mm(const ScaledMmParams& params) {
  const bool is_half = params.output_dtype == DType::kF16;
  if (params.a_dtype == DType::kI8) {
    is_half ? multiply<true, Half>(params) : multiply<true, BFloat16>(params);
  } else {
    is_half ? multiply<false, Half>(params) : multiply<false, BFloat16>(params);
  }
}

}  // namespace sgl_kernel::cpu

#else

namespace sgl_kernel::cpu {

bool has_amx() { return false; }

void amx_scaled_mm(const ScaledMmParams&) {}

}  // namespace sgl_kernel::cpu

#endif
