// QServe's products by the warp-wide matrix instruction of sm_80.
//
// Grid: a block a tile (mma_tile.cuh). A step of K is 64 numbers. QServe's tiles are made for this instruction: 16
// bytes a lane hold its fragments of 32 columns and 32 numbers along K, which leaves shifts and masks to do. Bound by
// the tensor cores for many rows, by the latency of one tile for few: K is not split.
// Measured on an H200, 2026-11-23, by channel, N x K = 9216 x 4096: 49 µs for a row, 516 µs for 2048.
#include <cuda_fp16.h>

#include "kernels/base/launch.h"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/mma_int8.cuh"
#include "kernels/gemm/mma_tile.cuh"
#include "kernels/gemm/qserve_mm_portable.h"
#include "kernels/gemm/qserve_mm_scale.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kTilesAcross = kTile / kQserveTile;  // tiles of weights side by side in a block's tile
constexpr int kTilesAlong = kStepK / kQserveTile;  // and along K in a step
static_assert(kWarpColumns == kQserveTile && kMmaK == kQserveTile, "a warp multiplies one tile at a time");

struct Stage {
  alignas(16) uint8_t input[kTile][kPitch];
  alignas(16) uint8_t weights[kTilesAcross][kTilesAlong * kQserveTileBytes];
  alignas(16) uint8_t scales[kTile];  // of the step's group
  alignas(16) uint8_t zeros[kTile];   // "
};

// The weights of one step, zeros outside the matrix: a copy of 16 bytes a thread.
__device__ __forceinline__ void load_weights(Stage& stage, const QserveMmParams& params, int64_t first_column,
                                             int64_t first_k) {
  constexpr int kChunk = 16, kChunks = sizeof(Stage::weights[0]) / kChunk;
  static_assert(kTilesAcross * kChunks == kThreads);
  const int across = threadIdx.x / kChunks, offset = threadIdx.x % kChunks * kChunk;
  const int64_t column = first_column + across * kQserveTile;
  const int64_t k = first_k + offset / kQserveTileBytes * kQserveTile;
  const bool there = column < params.n && k < params.k;
  const int64_t tile = column / kQserveTile * (params.k / kQserveTile) + k / kQserveTile;
  const uint8_t* from = there ? params.weights + tile * kQserveTileBytes + offset % kQserveTileBytes : params.weights;
  copy_async<kChunk>(&stage.weights[across][offset], from, there ? kChunk : 0);
}

// The scales and zeros of the group of one step.
__device__ __forceinline__ void load_group(Stage& stage, const QserveMmParams& params, int64_t first_column,
                                           int64_t first_k) {
  constexpr int kChunk = 16, kChunks = kTile / kChunk;
  if (threadIdx.x >= 2 * kChunks) return;
  const bool is_zeros = threadIdx.x >= kChunks;
  const int offset = threadIdx.x % kChunks * kChunk;
  const uint8_t* matrix = is_zeros ? params.group_zeros : params.group_scales;
  const bool there = first_column + offset < params.n;  // n is a multiple of 32
  const uint8_t* from = there ? matrix + first_k / kQserveGroup * params.n + first_column + offset : matrix;
  copy_async<kChunk>((is_zeros ? stage.zeros : stage.scales) + offset, from, there ? kChunk : 0);
}

template <bool kGrouped>
__device__ __forceinline__ void multiply_step(const Stage& stage, int first_row, int across, Sums<int>& sums) {
  const int lane = threadIdx.x % 32;
  uint32_t scales = 0, zeros = 0;  // of the columns lane / 4 of the four fragments, a byte each
  if constexpr (kGrouped) {
    const int at = across * kQserveTile + lane / 4 * 4;
    scales = *reinterpret_cast<const uint32_t*>(&stage.scales[at]);
    zeros = *reinterpret_cast<const uint32_t*>(&stage.zeros[at]);
  }
#pragma unroll
  for (int tile = 0; tile < kTilesAlong; ++tile) {
    const uint4 packed = *reinterpret_cast<const uint4*>(&stage.weights[across][tile * kQserveTileBytes + lane * 16]);
    // [half of K][fragment of 8 columns]: low bits of the first two fragments, high bits of the last two.
    const uint32_t words[2][2] = {{packed.x, packed.y}, {packed.z, packed.w}};
    uint32_t right[kColumnFragments][2];
#pragma unroll
    for (int column = 0; column < kColumnFragments; ++column) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t weights = words[half][column % 2] >> (column / 2 * 4);
        if constexpr (kGrouped) {
          weights = scale_qserve_weights(weights, scales >> (8 * column) & 0xff, zeros >> (8 * column) & 0xff);
        } else {
          weights &= 0x0f0f0f0f;
        }
        right[column][half] = weights;
      }
    }
#pragma unroll
    for (int row = 0; row < kRowFragments; ++row) {
      // Tiles: rows 0 to 7 and 8 to 15 of the first half of K, then of the second.
      uint32_t left[4];
      load_matrices(left, &stage.input[first_row + row * kMmaRows + lane % 16][tile * kMmaK + lane / 16 * 16]);
#pragma unroll
      for (int column = 0; column < kColumnFragments; ++column) mma_int8(sums[row][column], left, right[column]);
    }
  }
}

template <bool kGrouped, bool kAligned>
__global__ void __launch_bounds__(kThreads, 1) qserve_mm_kernel(const __grid_constant__ QserveMmParams params) {
  extern __shared__ __align__(16) uint8_t dynamic_shared[];
  Stage* stages = reinterpret_cast<Stage*>(dynamic_shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const BlockTile tile(blockIdx.x, params.m);
  const int first_row = warp / kWarpsAcross * kWarpRows, across = warp % kWarpsAcross;
  const int steps = static_cast<int>((params.k + kStepK - 1) / kStepK);
  const auto load = [&](Stage& stage, int step) {
    const int64_t k = static_cast<int64_t>(step) * kStepK;
    load_rows<kAligned>(stage.input, reinterpret_cast<const uint8_t*>(params.input), params.input_stride, tile.row,
                        params.m, k, params.k);
    load_weights(stage, params, tile.column, k);
    if constexpr (kGrouped) load_group(stage, params, tile.column, k);
  };
  Sums<int> sums = {};
  run_steps(stages, steps, load,
            [&](const Stage& stage, int) { multiply_step<kGrouped>(stage, first_row, across, sums); });
  const auto number = [](const void* halves, int64_t i) { return __half2float(static_cast<const __half*>(halves)[i]); };
#pragma unroll
  for (int row = 0; row < kRowFragments; ++row) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t i = tile.row + first_row + row * kMmaRows + lane / 4 + e / 2 * 8;
      if (i >= params.m) continue;
      const float row_scale = number(params.row_scales, i);
      const float row_sum = kGrouped ? 0.0f : number(params.row_sums, i);
#pragma unroll
      for (int column = 0; column < kColumnFragments; ++column) {
        const int64_t j = tile.column + across * kWarpColumns + column * kMmaColumns + lane % 4 * 2 + e % 2;
        if (j >= params.n) continue;
        float value = static_cast<float>(sums[row][column][e]) * row_scale * number(params.column_scales, j);
        if (!kGrouped) value -= row_sum * number(params.column_zeros, j);
        static_cast<__half*>(params.output)[i * params.output_stride + j] = __float2half_rn(value);
      }
    }
  }
}

template <bool kGrouped, bool kAligned>
Status launch_kernel(const QserveMmParams& params, Stream stream) {
  return launch_tiles<Stage>(qserve_mm_kernel<kGrouped, kAligned>, params, num_tiles(params.m, params.n), stream);
}

}  // namespace

Status qserve_mm_portable(const QserveMmParams& params, Stream stream) {
  constexpr uintptr_t kAlignment = 16;
  const bool aligned =
      (reinterpret_cast<uintptr_t>(params.input) | static_cast<uintptr_t>(params.input_stride)) % kAlignment == 0;
  if (params.grouped) {
    return aligned ? launch_kernel<true, true>(params, stream) : launch_kernel<true, false>(params, stream);
  }
  return aligned ? launch_kernel<false, true>(params, stream) : launch_kernel<false, false>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
