// Scaled products of 8-bit matrices by the warp-wide matrix instructions of sm_80.
//
// Grid: a block a tile (mma_tile.cuh) of a batch. int8 is multiplied as it is; e4m3 and e5m2 are widened to f16, which
// holds them exactly, and summed in f32.
// Bound by the tensor cores for many rows, by the latency of one tile for few: K is not split. Not measured.
#include "kernels/base/launch.h"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/fp8.cuh"
#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/mma_int8.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/gemm/mma_tile.cuh"
#include "kernels/gemm/scaled_mm_portable.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

static_assert(kTile == kScaleBlock, "a tile has one scale of B for each block of K");

struct Stage {
  alignas(16) uint8_t a[kTile][kPitch];
  alignas(16) uint8_t b[kTile][kPitch];
};

// Four fp8 numbers as pairs of f16, which holds them exactly. e5m2 is the upper half of f16.
template <DType kDtype>
__device__ __forceinline__ HalfPairs widen(uint32_t four) {
  if constexpr (kDtype == DType::kF8E4M3) return half_of_e4m3(four);
  return {__byte_perm(four, 0, 0x1404), __byte_perm(four, 0, 0x3424)};
}

// An operand as a thread holds it for the products of one kMmaK; a[0], a[1] and b[0] are of its first half.
struct Int8 {
  using Sum = int;
  struct Left {
    uint32_t a[4];
  };
  struct Right {
    uint32_t b[2];
  };
  static __device__ __forceinline__ Left left(const uint32_t (&a)[4]) { return {{a[0], a[1], a[2], a[3]}}; }
  static __device__ __forceinline__ Right right(uint32_t b0, uint32_t b1) { return {{b0, b1}}; }
  static __device__ __forceinline__ void multiply(int (&d)[4], const Left& left, const Right& right) {
    mma_int8(d, left.a, right.b);
  }
};

// The instruction's order along K does not matter as long as both operands have the same one: it takes the pairs of a
// thread's four bytes where it expects the pairs of columns 2t and 2t + 8.
template <DType kLeft, DType kRight>
struct Fp8 {
  using Sum = float;
  struct Left {
    uint32_t a[2][4];
  };
  struct Right {
    uint32_t b[2][2];
  };
  static __device__ __forceinline__ Left left(const uint32_t (&a)[4]) {
    Left wide;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const HalfPairs upper = widen<kLeft>(a[2 * half]), lower = widen<kLeft>(a[2 * half + 1]);
      wide.a[half][0] = upper.first;
      wide.a[half][1] = lower.first;
      wide.a[half][2] = upper.second;
      wide.a[half][3] = lower.second;
    }
    return wide;
  }
  static __device__ __forceinline__ Right right(uint32_t b0, uint32_t b1) {
    const HalfPairs first = widen<kRight>(b0), second = widen<kRight>(b1);
    return {{{first.first, first.second}, {second.first, second.second}}};
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const Left& left, const Right& right) {
    mma_16x8x16<__half>(d, left.a[0], right.b[0][0], right.b[0][1]);
    mma_16x8x16<__half>(d, left.a[1], right.b[1][0], right.b[1][1]);
  }
};

template <class Operand>
__device__ __forceinline__ void multiply_step(const Stage& stage, int first_row, int first_column,
                                              Sums<typename Operand::Sum>& sums) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kStepK; k += kMmaK) {
    typename Operand::Right right[kColumnFragments];
#pragma unroll
    for (int pair = 0; pair < kColumnFragments / 2; ++pair) {
      // Tiles: the two halves of K of 8 columns, then of the next 8.
      uint32_t b[4];
      load_matrices(b, &stage.b[first_column + pair * 16 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 16]);
      right[2 * pair] = Operand::right(b[0], b[1]);
      right[2 * pair + 1] = Operand::right(b[2], b[3]);
    }
#pragma unroll
    for (int row = 0; row < kRowFragments; ++row) {
      // Tiles: rows 0 to 7 and 8 to 15 of the first half of K, then of the second.
      uint32_t a[4];
      load_matrices(a, &stage.a[first_row + row * kMmaRows + lane % 16][k + lane / 16 * 16]);
      const typename Operand::Left left = Operand::left(a);
#pragma unroll
      for (int column = 0; column < kColumnFragments; ++column) {
        Operand::multiply(sums[row][column], left, right[column]);
      }
    }
  }
}

template <class Operand, bool kBlockwise, bool kAligned, class Output>
__global__ void __launch_bounds__(kThreads, 1) scaled_mm_kernel(const __grid_constant__ ScaledMmParams params) {
  using Sum = typename Operand::Sum;
  extern __shared__ __align__(16) uint8_t dynamic_shared[];
  Stage* stages = reinterpret_cast<Stage*>(dynamic_shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const unsigned tiles = gridDim.x / static_cast<unsigned>(params.batches);
  const int64_t batch = blockIdx.x / tiles;
  const auto* a = static_cast<const uint8_t*>(params.a) + batch * params.a_batch_stride;  // of this batch
  const auto* b = static_cast<const uint8_t*>(params.b) + batch * params.b_batch_stride;
  Output* output = static_cast<Output*>(params.output) + batch * params.output_batch_stride;
  const auto [tile_row, tile_column] = BlockTile(blockIdx.x % tiles, params.m);
  const int first_row = warp / kWarpsAcross * kWarpRows, first_column = warp % kWarpsAcross * kWarpColumns;
  const int steps = static_cast<int>((params.k + kStepK - 1) / kStepK);
  const auto load = [&](Stage& stage, int step) {
    const int64_t k = static_cast<int64_t>(step) * kStepK;
    load_rows<kAligned>(stage.a, a, params.a_stride, tile_row, params.m, k, params.k);
    load_rows<kAligned>(stage.b, b, params.b_stride, tile_column, params.n, k, params.k);
  };
  Sums<Sum> sums = {};
  Sums<float> totals = {};  // of blocks; unused otherwise
  run_steps(stages, steps, load, [&](const Stage& stage, int step) {
    multiply_step<Operand>(stage, first_row, first_column, sums);
    constexpr int kStepsABlock = kScaleBlock / kStepK;
    if (kBlockwise && ((step + 1) % kStepsABlock == 0 || step + 1 == steps)) {
      const int64_t block = step / kStepsABlock;
      const float b_scale = params.b_block_scales.at(block, tile_column / kScaleBlock);
#pragma unroll
      for (int row = 0; row < kRowFragments; ++row) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t i = tile_row + first_row + row * kMmaRows + lane / 4 + e / 2 * 8;
          const float scale = b_scale * params.a_block_scales.at(min(i, params.m - 1), block);
#pragma unroll
          for (int column = 0; column < kColumnFragments; ++column) {
            totals[row][column][e] += scale * static_cast<float>(sums[row][column][e]);
            sums[row][column][e] = 0;
          }
        }
      }
    }
  });
#pragma unroll
  for (int row = 0; row < kRowFragments; ++row) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t i = tile_row + first_row + row * kMmaRows + lane / 4 + e / 2 * 8;
      if (i >= params.m) continue;
      const float row_scale = kBlockwise ? 1.0f : params.row_scales.at(i);
#pragma unroll
      for (int column = 0; column < kColumnFragments; ++column) {
        const int64_t j = tile_column + first_column + column * kMmaColumns + lane % 4 * 2 + e % 2;
        if (j >= params.n) continue;
        float value = totals[row][column][e];
        if (!kBlockwise) value = static_cast<float>(sums[row][column][e]) * row_scale * params.column_scales.at(j);
        if (params.bias != nullptr) value += to_float(static_cast<const Output*>(params.bias)[j]);
        output[i * params.output_stride + j] = from_float<Output>(value);
      }
    }
  }
}

template <class Operand, bool kBlockwise, bool kAligned, class Output>
Status launch_kernel(const ScaledMmParams& params, Stream stream) {
  return launch_tiles<Stage>(scaled_mm_kernel<Operand, kBlockwise, kAligned, Output>, params,
                             params.batches * num_tiles(params.m, params.n), stream);
}

template <class Operand, bool kBlockwise>
Status launch_operand(const ScaledMmParams& params, Stream stream) {
  constexpr uintptr_t kAlignment = 16;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(params.a) | reinterpret_cast<uintptr_t>(params.b) |
                         static_cast<uintptr_t>(params.a_stride) | static_cast<uintptr_t>(params.b_stride) |
                         static_cast<uintptr_t>(params.a_batch_stride) | static_cast<uintptr_t>(params.b_batch_stride);
  const bool aligned = bits % kAlignment == 0;
  if (params.output_dtype == DType::kF16) {
    return aligned ? launch_kernel<Operand, kBlockwise, true, __half>(params, stream)
                   : launch_kernel<Operand, kBlockwise, false, __half>(params, stream);
  }
  return aligned ? launch_kernel<Operand, kBlockwise, true, __nv_bfloat16>(params, stream)
                 : launch_kernel<Operand, kBlockwise, false, __nv_bfloat16>(params, stream);
}

}  // namespace

Status scaled_mm_portable(const ScaledMmParams& params, Stream stream) {
  if (params.a_dtype == DType::kI8) return launch_operand<Int8, false>(params, stream);
  using E4m3 = Fp8<DType::kF8E4M3, DType::kF8E4M3>;
  if (params.blockwise) return launch_operand<E4m3, true>(params, stream);
  const bool b_is_e5m2 = params.b_dtype == DType::kF8E5M2;
  if (params.a_dtype == DType::kF8E5M2) {
    return b_is_e5m2 ? launch_operand<Fp8<DType::kF8E5M2, DType::kF8E5M2>, false>(params, stream)
                     : launch_operand<Fp8<DType::kF8E5M2, DType::kF8E4M3>, false>(params, stream);
  }
  return b_is_e5m2 ? launch_operand<Fp8<DType::kF8E4M3, DType::kF8E5M2>, false>(params, stream)
                   : launch_operand<E4m3, false>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
