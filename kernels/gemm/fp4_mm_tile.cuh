// NVFP4 products by warp-wide matrix instructions: what is the same whether values are widened for them or not.
//
// Grid: a block a tile (mma_tile.cuh). A step of K, 64 bytes of each row, is 128 values, whose scales are two tiles of
// scales of each operand: two parts of it. K is not split.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/base/launch.h"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/gemm/fp4_mm_params.h"
#include "kernels/gemm/mma_tile.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kScaleTiles = kStepK / kMmaK;                       // of an operand in a step
inline constexpr int kScaleChunks = kScaleTiles * kScaleTileBytes / 16;  // copies of 16 bytes
static_assert(2 * kMmaK == kScaleTileColumns * kFp4Block, "a tile of scales is as wide as a fragment");
static_assert(kTile == kScaleTileRows, "an operand has one row of tiles of scales");

struct Fp4Stage {
  alignas(16) uint8_t a[kTile][kPitch];
  alignas(16) uint8_t b[kTile][kPitch];
  alignas(16) uint8_t a_scales[kScaleTiles][kScaleTileBytes];
  alignas(16) uint8_t b_scales[kScaleTiles][kScaleTileBytes];
};

// The scales of one step. Tiles of scales behind the last one are zeros; `first_row` is that of a tile.
__device__ __forceinline__ void load_fp4_scales(uint8_t (*to)[kScaleTileBytes], const uint8_t* scales,
                                                int64_t first_row, int step, int64_t padded_blocks, int chunk) {
  const int64_t tiles = padded_blocks / kScaleTileColumns;  // of a row
  const int64_t tile = static_cast<int64_t>(step) * kScaleTiles + chunk * 16 / kScaleTileBytes;
  const bool there = tile < tiles;
  const int64_t from = (first_row / kScaleTileRows * tiles + tile) * kScaleTileBytes + chunk * 16 % kScaleTileBytes;
  copy_async<16>(&to[0][0] + chunk * 16, there ? scales + from : scales, there ? 16 : 0);
}

// Product: how a warp multiplies. It has
//   multiply()  adds to the sums the part of a stage that one tile of scales covers, of whose blocks the first `blocks`
//               are there
//   kFactor     what the sums are multiplied with
template <class Product, bool kAligned, class Output>
__global__ void __launch_bounds__(kThreads, 1) fp4_mm_kernel(const __grid_constant__ Fp4MmParams params) {
  extern __shared__ __align__(16) uint8_t dynamic_shared[];
  Fp4Stage* stages = reinterpret_cast<Fp4Stage*>(dynamic_shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const BlockTile tile(blockIdx.x, params.m);
  const int first_row = warp / kWarpsAcross * kWarpRows, first_column = warp % kWarpsAcross * kWarpColumns;
  const int64_t row_bytes = params.k / 2, blocks = params.k / kFp4Block;
  const int steps = static_cast<int>((row_bytes + kStepK - 1) / kStepK);
  const auto load = [&](Fp4Stage& stage, int step) {
    const int64_t first_byte = static_cast<int64_t>(step) * kStepK;
    load_rows<kAligned>(stage.a, params.a.values, params.a.stride, tile.row, params.m, first_byte, row_bytes);
    load_rows<kAligned>(stage.b, params.b.values, params.b.stride, tile.column, params.n, first_byte, row_bytes);
    static_assert(2 * kScaleChunks <= kThreads);
    const int chunk = threadIdx.x;
    if (chunk < kScaleChunks) {
      load_fp4_scales(stage.a_scales, params.a.scales, tile.row, step, params.padded_blocks, chunk);
    } else if (chunk < 2 * kScaleChunks) {
      load_fp4_scales(stage.b_scales, params.b.scales, tile.column, step, params.padded_blocks, chunk - kScaleChunks);
    }
  };
  Sums<float> sums = {};
  run_steps(stages, steps, load, [&](const Fp4Stage& stage, int step) {
    const int64_t left = blocks - int64_t{step} * kScaleTiles * kScaleTileColumns;
#pragma unroll
    for (int part = 0; part < kScaleTiles; ++part) {
      const int here =
          static_cast<int>(min(max(left - part * kScaleTileColumns, int64_t{0}), int64_t{kScaleTileColumns}));
      Product::multiply(stage, part, first_row, first_column, here, sums);
    }
  });
  const float factor = *params.alpha;
#pragma unroll
  for (int row = 0; row < kRowFragments; ++row) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t i = tile.row + first_row + row * kMmaRows + lane / 4 + e / 2 * 8;
      if (i >= params.m) continue;
#pragma unroll
      for (int column = 0; column < kColumnFragments; ++column) {
        const int64_t j = tile.column + first_column + column * kMmaColumns + lane % 4 * 2 + e % 2;
        if (j >= params.n) continue;
        const float value = sums[row][column][e] * Product::kFactor * factor;
        static_cast<Output*>(params.output)[i * params.output_stride + j] = from_float<Output>(value);
      }
    }
  }
}

template <class Product, class Output>
Status launch_fp4_output(const Fp4MmParams& params, Stream stream) {
  constexpr uintptr_t kAlignment = 16;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(params.a.values) | reinterpret_cast<uintptr_t>(params.b.values) |
                         static_cast<uintptr_t>(params.a.stride) | static_cast<uintptr_t>(params.b.stride);
  const auto kernel =
      bits % kAlignment == 0 ? fp4_mm_kernel<Product, true, Output> : fp4_mm_kernel<Product, false, Output>;
  return launch_tiles<Fp4Stage>(kernel, params, num_tiles(params.m, params.n), stream);
}

template <class Product>
Status multiply_fp4_tiles(const Fp4MmParams& params, Stream stream) {
  return params.output_dtype == DType::kF16 ? launch_fp4_output<Product, __half>(params, stream)
                                            : launch_fp4_output<Product, __nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
