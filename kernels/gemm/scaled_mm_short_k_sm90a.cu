// Batches of e4m3 products of few rows with a short K on Hopper, such as the heads of an attention that absorbs a
// projection.
//
// Operands are swapped: 16 columns of the output fill the rows of the tensor core's instruction, 8 or 16 rows of A its
// columns. Hopper's warp-wide instruction takes no e4m3; both operands are widened to f16, where their values are
// exact. They go from memory to registers, all of a warp's at once: nothing is shared, nobody waits for anybody.
//
// Grid: x the batches, y kWarps tiles of 16 columns. Bound by latency: with 128 batches of N x K = 512 x 128, reading
// the 8.4 MB of B alone takes 3.1 µs. Asking for them in the L2 cache before the predecessor ends is in the way of its
// stores: half a microsecond slower with 16 rows.
//
// Measured on an H200, 2026-11-23, in µs; the persistent kernel (scaled_mm_tiles_sm90a.cuh) in turns with it:
//   batches x M x N x K   128 x 1 x 512 x 128   128 x 16 x 512 x 128   128 x 8 x 128 x 512   128 x 16 x 512 x 256
//                         3.7                   4.1                    3.8                   6.4
//   persistent            5.3                   5.6                    4.7                   7.7
// More than 8 rows with a K above 256 want too many registers at once: 5.6 with 128 x 16 x 128 x 512, to 4.9.
#include "kernels/base/launch.h"
#include "kernels/device/fp8.cuh"
#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/gemm/scaled_mm_epilogue_sm90a.cuh"
#include "kernels/gemm/scaled_mm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kTileColumns = 16;
constexpr int kChunk = 16, kStepK = 4 * kChunk;  // along K: what a lane loads of a row at once, and the four beside it
constexpr int kBlocks = 4;                       // of a multiprocessor
template <int kSteps>
constexpr int kWarps = kSteps <= 2 ? 8 : 4;

// kSteps: of K.
template <int kRowTiles, int kSteps>
__global__ void __launch_bounds__(kWarps<kSteps> * 32, kBlocks)
    scaled_mm_short_k_kernel(const __grid_constant__ ScaledMmParams params) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int m = static_cast<int>(params.m), n = static_cast<int>(params.n), k = static_cast<int>(params.k);
  // The lane's pair of columns, which are rows g and g + 8 of the instruction. N is even.
  const int first_column = (blockIdx.y * kWarps<kSteps> + warp) * kTileColumns + 2 * g;
  const int64_t batch = blockIdx.x;
  // Rows and columns beyond the last count for nothing: those then read again are in no sum that is stored.
  const auto* const columns = static_cast<const uint8_t*>(params.b) + batch * params.b_batch_stride +
                              min(first_column, n - 2) * params.b_stride + t * kChunk;
  const auto* const rows = static_cast<const uint8_t*>(params.a) + batch * params.a_batch_stride + t * kChunk;
  const auto load = [&](const uint8_t* chunk, int step) {
    return step * kStepK + t * kChunk < k ? __ldg(reinterpret_cast<const uint4*>(chunk + step * kStepK)) : uint4{};
  };
  wait_for_predecessor();

  uint4 column[kSteps][2], row[kSteps][kRowTiles];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) column[step][lower] = load(columns + lower * params.b_stride, step);
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) row[step][r] = load(rows + min(8 * r + g, m - 1) * params.a_stride, step);
  }
  const float row_scale = __ldg(params.row_scales.data), column_scale = __ldg(params.column_scales.data);
  release_successors();

  float sums[kRowTiles][4] = {};
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const HalfPairs upper = half_of_e4m3(word_of(column[step][0], word));
      const HalfPairs lower = half_of_e4m3(word_of(column[step][1], word));
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const HalfPairs right = half_of_e4m3(word_of(row[step][r], word));
        mma_16x8x16<__half>(sums[r], {upper.first, lower.first, upper.second, lower.second}, right.first, right.second);
      }
    }
  }
  if (first_column >= n) return;
  const Epilogue epilogue = {.is_bf16 = params.output_dtype == DType::kBF16};
  auto* const output = static_cast<uint16_t*>(params.output) + batch * params.output_batch_stride + first_column;
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    const int token = 8 * (i / 2) + 2 * t + i % 2;
    const float* const pair = &sums[i / 2][i % 2];  // and the column beside it two further on
    if (token >= m) continue;
    *reinterpret_cast<uint32_t*>(output + token * params.output_stride) =
        epilogue.round(pair[0] * row_scale * column_scale, pair[2] * row_scale * column_scale);
  }
}

template <int kRowTiles, int kSteps>
Status launch_steps(const ScaledMmParams& params, Stream stream) {
  constexpr int kColumns = kWarps<kSteps> * kTileColumns;
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(params.batches), static_cast<unsigned>((params.n + kColumns - 1) / kColumns)),
      .block = kWarps<kSteps> * 32,
      .pdl = true};
  return launch(params.operator_name, scaled_mm_short_k_kernel<kRowTiles, kSteps>, shape, stream, params);
}

template <int kSteps>
Status launch_rows(const ScaledMmParams& params, Stream stream) {
  return params.m <= 8 ? launch_steps<1, kSteps>(params, stream) : launch_steps<2, kSteps>(params, stream);
}

}  // namespace

bool scaled_mm_short_k_takes(const ScaledMmParams& params) {
  // What a lane's registers hold: of a K half as long, twice as many rows.
  constexpr int kMostK = 8 * kStepK, kRows = 8;
  constexpr int64_t kMostColumns = kMostGridY * kWarps<kMostK / kStepK> * kTileColumns;
  const bool fits = params.k <= kMostK / 2 ? params.m <= 2 * kRows : params.k <= kMostK && params.m <= kRows;
  return fits && params.k % kChunk == 0 && params.n <= kMostColumns && params.a_dtype == DType::kF8E4M3 &&
         params.b_dtype == DType::kF8E4M3 && !params.blockwise && params.bias == nullptr &&
         params.row_scales.step == 0 && params.column_scales.step == 0;
}

Status scaled_mm_short_k(const ScaledMmParams& params, Stream stream) {
  if (params.k <= 2 * kStepK) return launch_rows<2>(params, stream);
  if (params.k <= 4 * kStepK) return launch_rows<4>(params, stream);
  return launch_steps<1, 8>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
