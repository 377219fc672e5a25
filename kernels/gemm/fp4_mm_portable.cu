// Products of NVFP4 matrices by the warp-wide matrix instruction of sm_80: values are widened to f16 in the main loop.
//
// Grid: a block a tile (mma_tile.cuh). A step of K, 64 bytes of each row, is 128 values, whose scales are two tiles of
// scales of each operand. Bound by the widening for many rows, by the latency of one tile for few: K is not split.
// Measured on an H200, 2026-11-23, N x K = 9216 x 4096: 92 µs for a row, 95 for 64.
#include "kernels/base/launch.h"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/fp8.cuh"
#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/mma_int8.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/gemm/fp4_mm_portable.h"
#include "kernels/gemm/fp4_mm_widen.cuh"
#include "kernels/gemm/mma_tile.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kValues = 2 * kMmaK;                                // of a row in kMmaK bytes: those of a tile of scales
constexpr int kScaleTiles = kStepK / kMmaK;                       // of an operand in a step
constexpr int kScaleChunks = kScaleTiles * kScaleTileBytes / 16;  // copies of 16 bytes
static_assert(kValues == kScaleTileColumns * kFp4Block);
static_assert(kTile == kScaleTileRows, "an operand has one row of tiles of scales");

struct Stage {
  alignas(16) uint8_t a[kTile][kPitch];
  alignas(16) uint8_t b[kTile][kPitch];
  alignas(16) uint8_t a_scales[kScaleTiles][kScaleTileBytes];
  alignas(16) uint8_t b_scales[kScaleTiles][kScaleTileBytes];
};

// The scales of one step. Tiles of scales behind the last one are zeros; `first_row` is that of a tile.
__device__ __forceinline__ void load_scales(uint8_t (*to)[kScaleTileBytes], const uint8_t* scales, int64_t first_row,
                                            int step, int64_t padded_blocks, int chunk) {
  const int64_t tiles = padded_blocks / kScaleTileColumns;  // of a row
  const int64_t tile = static_cast<int64_t>(step) * kScaleTiles + chunk * 16 / kScaleTileBytes;
  const bool there = tile < tiles;
  const int64_t from = (first_row / kScaleTileRows * tiles + tile) * kScaleTileBytes + chunk * 16 % kScaleTileBytes;
  copy_async<16>(&to[0][0] + chunk * 16, there ? scales + from : scales, there ? 16 : 0);
}

// The scales of a row's four blocks for this thread: of the block that its four bytes are in, for each half of kMmaK.
// `word` has the four scales, of which the first `blocks` are there.
struct RowScales {
  uint32_t of_half[2];  // pairs of f16

  __device__ __forceinline__ RowScales(uint32_t word, int blocks) {
    if (blocks < kScaleTileColumns) word &= (1u << (8 * blocks)) - 1;
    const HalfPairs pairs = half_of_e4m3(word);
    // Threads 0 and 1 of four have the first 16 values of 32.
    const uint32_t selector = threadIdx.x % 4 < 2 ? 0x1010 : 0x3232;
    of_half[0] = __byte_perm(pairs.first, 0, selector);
    of_half[1] = __byte_perm(pairs.second, 0, selector);
  }
};

// Of the two halves of kMmaK and the two instructions of each.
struct Left {
  uint32_t a[2][2][4];
};
struct Right {
  uint32_t b[2][2][2];
};

__device__ __forceinline__ uint32_t load_word(const uint8_t* shared) {
  return *reinterpret_cast<const uint32_t*>(shared);
}

// `blocks`: those that are left from this step on.
__device__ __forceinline__ void multiply_step(const Stage& stage, int first_row, int first_column, int64_t blocks,
                                              Sums<float>& sums) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int tile = 0; tile < kScaleTiles; ++tile) {
    const int k = tile * kMmaK;
    const int here =
        static_cast<int>(min(max(blocks - tile * kScaleTileColumns, int64_t{0}), int64_t{kScaleTileColumns}));
    Right right[kColumnFragments];
#pragma unroll
    for (int pair = 0; pair < kColumnFragments / 2; ++pair) {
      // Tiles: the two halves of K of 8 columns, then of the next 8.
      uint32_t b[4];
      load_matrices(b, &stage.b[first_column + pair * 16 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 16]);
#pragma unroll
      for (int next = 0; next < 2; ++next) {
        const int column = first_column + pair * 16 + next * 8 + lane / 4;
        const RowScales scales(load_word(&stage.b_scales[tile][scale_in_tile(column)]), here);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t wide[4];
          widen(b[2 * next + half], scales.of_half[half], wide);
#pragma unroll
          for (int i = 0; i < 4; ++i) right[2 * pair + next].b[half][i / 2][i % 2] = wide[i];
        }
      }
    }
#pragma unroll
    for (int row = 0; row < kRowFragments; ++row) {
      // Tiles: rows 0 to 7 and 8 to 15 of the first half of K, then of the second.
      uint32_t a[4];
      load_matrices(a, &stage.a[first_row + row * kMmaRows + lane % 16][k + lane / 16 * 16]);
      Left left;
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const int i = first_row + row * kMmaRows + lower * 8 + lane / 4;
        const RowScales scales(load_word(&stage.a_scales[tile][scale_in_tile(i)]), here);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t wide[4];
          widen(a[2 * half + lower], scales.of_half[half], wide);
#pragma unroll
          for (int p = 0; p < 4; ++p) left.a[half][p / 2][p % 2 * 2 + lower] = wide[p];
        }
      }
#pragma unroll
      for (int column = 0; column < kColumnFragments; ++column) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const auto& b = right[column].b[half];
          mma_16x8x16<__half>(sums[row][column], left.a[half][0], b[0][0], b[0][1]);
          mma_16x8x16<__half>(sums[row][column], left.a[half][1], b[1][0], b[1][1]);
        }
      }
    }
  }
}

template <bool kAligned, class Output>
__global__ void __launch_bounds__(kThreads, 1) fp4_mm_kernel(const __grid_constant__ Fp4MmParams params) {
  extern __shared__ __align__(16) uint8_t dynamic_shared[];
  Stage* stages = reinterpret_cast<Stage*>(dynamic_shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const BlockTile tile(blockIdx.x, params.m);
  const int first_row = warp / kWarpsAcross * kWarpRows, first_column = warp % kWarpsAcross * kWarpColumns;
  const int64_t row_bytes = params.k / 2, blocks = params.k / kFp4Block;
  const int steps = static_cast<int>((row_bytes + kStepK - 1) / kStepK);
  const auto load = [&](int step) {
    if (step < steps) {
      Stage& stage = stages[step % kStages];
      const int64_t first_byte = static_cast<int64_t>(step) * kStepK;
      load_rows<kAligned>(stage.a, params.a.values, params.a.stride, tile.row, params.m, first_byte, row_bytes);
      load_rows<kAligned>(stage.b, params.b.values, params.b.stride, tile.column, params.n, first_byte, row_bytes);
      static_assert(2 * kScaleChunks <= kThreads);
      const int chunk = threadIdx.x;
      if (chunk < kScaleChunks) {
        load_scales(stage.a_scales, params.a.scales, tile.row, step, params.padded_blocks, chunk);
      } else if (chunk < 2 * kScaleChunks) {
        load_scales(stage.b_scales, params.b.scales, tile.column, step, params.padded_blocks, chunk - kScaleChunks);
      }
    }
    commit_copies();
  };
  Sums<float> sums = {};
  for (int step = 0; step < kStages - 1; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    load(step + kStages - 1);
    constexpr int kStepBlocks = kScaleTiles * kScaleTileColumns;
    multiply_step(stages[step % kStages], first_row, first_column, blocks - int64_t{step} * kStepBlocks, sums);
  }
  wait_for_copies<0>();
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
        const float value = sums[row][column][e] * kProductFactor * factor;
        static_cast<Output*>(params.output)[i * params.output_stride + j] = from_float<Output>(value);
      }
    }
  }
}

template <bool kAligned, class Output>
Status launch_kernel(const Fp4MmParams& params, Stream stream) {
  const int64_t tiles = num_tiles(params.m, params.n);
  if (tiles > INT32_MAX) return Unsupported(std::string(params.operator_name) + ": out has more than 2^45 elements");
  constexpr size_t kSharedBytes = sizeof(Stage) * kStages;
  const auto kernel = fp4_mm_kernel<kAligned, Output>;
  SGL_RETURN_IF_ERROR(allow_shared_memory(params.operator_name, kernel, kSharedBytes));
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(tiles)), .block = dim3(kThreads), .shared_bytes = kSharedBytes};
  return launch(params.operator_name, kernel, shape, stream, params);
}

template <class Output>
Status launch_output(const Fp4MmParams& params, Stream stream) {
  constexpr uintptr_t kAlignment = 16;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(params.a.values) | reinterpret_cast<uintptr_t>(params.b.values) |
                         static_cast<uintptr_t>(params.a.stride) | static_cast<uintptr_t>(params.b.stride);
  return bits % kAlignment == 0 ? launch_kernel<true, Output>(params, stream)
                                : launch_kernel<false, Output>(params, stream);
}

}  // namespace

Status fp4_mm_portable(const Fp4MmParams& params, Stream stream) {
  return params.output_dtype == DType::kF16 ? launch_output<__half>(params, stream)
                                            : launch_output<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
