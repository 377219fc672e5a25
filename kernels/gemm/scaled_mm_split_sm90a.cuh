// Scaled products of few rows of int8, or with scales of blocks, on Hopper: the weights are read once, as fast as
// memory gives them.
//
// Operands are swapped: left = B^T (the weights), right = A (the tokens), so that the tensor core's 64 rows are filled
// however few tokens there are. K is split over the blocks of a cluster; each leaves its partial sums in its shared
// memory, and all of them then add up their share of the tile from there, in the order of K.
//
// Grid: a cluster a tile of 64 output columns by kCols tokens. Bound by memory; two blocks fit a multiprocessor, which
// keeps enough bytes on their way.
//
// Measured on an H200, 2026-11-23, 16 rows of int8:
//   N x K   9216 x 4096   4096 x 8192   3072 x 4096   4096 x 1536   7168 x 16384
//   µs      11.7          11.5          5.3           3.8           31.0
#pragma once

#include "kernels/base/launch.h"
#include "kernels/device/matmul_sm90.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/gemm/scaled_mm_block_scales_sm90a.cuh"
#include "kernels/gemm/scaled_mm_epilogue_sm90a.cuh"
#include "kernels/gemm/scaled_mm_params.h"

namespace sgl_kernel::SGL_TARGET::scaled_mm_split {

using namespace matmul;

// Of the 227 KiB of a multiprocessor; a little of a block's share is the system's.
inline constexpr int kSharedBytes = 113 * 1024;

// kBlockwise: each block of kScaleBlock of K has scales, for a token and for kScaleBlock columns of the output.
template <class Sum_, int kCols_, bool kBlockwise_ = false>
struct Config {
  using Sum = Sum_;
  static constexpr int kRowBlocks = 1, kConsumers = 1, kCols = kCols_;
  static constexpr int kLeftRows = kInstructionRows * kConsumers;
  static constexpr bool kBlockwise = kBlockwise_;
  static constexpr int kScales = kBlockwise ? kCols + kScalesOfB : 0;
  static constexpr int kOtherBytes = 2048;  // room for barriers and the scales of tokens, each padded
  static constexpr int kStageBytes = (kInstructionRows * kConsumers + kCols) * kBlockK + kScales * sizeof(float);
  static constexpr int kStages = (kSharedBytes - kOtherBytes) / kStageBytes;
  static constexpr int kThreads = kConsumers * kWarpgroup + (kBlockwise ? 64 : 32);
  static constexpr int kBlocks = 2;  // of a multiprocessor, at least
};

template <class C>
struct SharedMemory {
  // A token's partial sums, padded so that the quads of a warp write to different banks.
  static constexpr int kPitch = kTileRows<C> + 4;
  union {
    Ring<C> ring;
    alignas(16) typename C::Sum partial[C::kCols][kPitch];
  };
  float row_scales[C::kCols];
  __device__ SharedMemory() {}
};

struct Call {
  Epilogue epilogue;
  ScaleMatrix a_block_scales, b_block_scales;
  uint16_t* output;
  int64_t output_stride;
  int k_blocks, splits;
  int row_tiles;  // of weights
  int box_rows;   // of both operands together
};

// Four neighbours in the shared memory of a block of the cluster.
__device__ __forceinline__ int4 load_from_rank(const void* mine, uint32_t rank) {
  int4 value;
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [remote];\n"
      "}\n"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "r"(shared_address(mine)), "r"(rank)
      : "memory");
  return value;
}

// Neighbouring columns of the output that a thread stores at a time, always the same ones of a tile.
inline constexpr int kColsAThread = 4;
template <class C>
inline constexpr int kVectors = kTileRows<C> / kColsAThread;

// Their constants, loaded before the products.
struct ColumnConstants {
  float scale[kColsAThread], bias[kColsAThread];

  __device__ __forceinline__ void load(const Epilogue& epilogue, int col) {
#pragma unroll
    for (int e = 0; e < kColsAThread; ++e) {
      scale[e] = epilogue.column_scale(col + e);
      bias[e] = epilogue.bias_of(col + e);
    }
  }
};

// The loop over num_blocks K blocks where each has its scales: of tokens, which are columns here, and one of B.
template <class C, class Issued>
__device__ __forceinline__ void multiply_columns(Ring<C>& ring, Position<C>& at, int num_blocks, Sums<C>& totals,
                                                 Issued&& issued) {
  Sums<C> sums;
#pragma unroll
  for (auto& total : totals[0]) total = 0;
  for (int block = 0; block < num_blocks; ++block) {
    ring.full[at.index].wait(at.parity);
    pin_sums<C>(sums);
    open_wgmma();
    multiply_stage<C>(ring, at.index, 0, true, sums);
    commit_wgmma();
    pin_sums<C>(sums);
    const float* scales = ring.scales[at.index];
    const float scale_of_b = scales[C::kCols];
    if (block + 1 == num_blocks) issued();
    wait_wgmma<0>();
    pin_sums<C>(sums);
#pragma unroll
    for (int j = 0; j < C::kCols / 8; ++j) {
      const float2 scale = *reinterpret_cast<const float2*>(&scales[8 * j + 2 * (threadIdx.x % 4)]);
      const float factor[2] = {scale.x * scale_of_b, scale.y * scale_of_b};
#pragma unroll
      for (int i = 0; i < 4; ++i) totals[0][4 * j + i] += factor[i % 2] * sums[0][4 * j + i];
    }
    release<C>(ring, at.index);
    at.advance();
  }
}

// This rank's share of the tile at (output column, token): sums over the ranks, scales, stores.
template <class C>
__device__ __forceinline__ void store_share(const Call& call, SharedMemory<C>& shared, int first_col, int first_token,
                                            uint32_t rank, const ColumnConstants& constants) {
  using Sum = typename C::Sum;
  constexpr int kThreads = C::kConsumers * kWarpgroup;
  static_assert(kThreads % kVectors<C> == 0);
  const Epilogue& epilogue = call.epilogue;
  const int tokens = min(C::kCols, epilogue.rows - first_token);
  const int offset = threadIdx.x % kVectors<C> * kColsAThread;
  if (first_col + offset >= epilogue.columns) return;
  constexpr int kTokensAStep = kThreads / kVectors<C>;
  for (int token = rank * kTokensAStep + threadIdx.x / kVectors<C>; token < tokens;
       token += call.splits * kTokensAStep) {
    const Sum* mine = &shared.partial[token][offset];
    Sum total[kColsAThread] = {};
    for (int split = 0; split < call.splits; ++split) {
      const int4 loaded = load_from_rank(mine, split);
      const Sum* part = reinterpret_cast<const Sum*>(&loaded);
#pragma unroll
      for (int e = 0; e < kColsAThread; ++e) total[e] += part[e];
    }
    const float row_scale = shared.row_scales[token];
    float value[kColsAThread];
#pragma unroll
    for (int e = 0; e < kColsAThread; ++e) {
      value[e] = static_cast<float>(total[e]) * row_scale * constants.scale[e] + constants.bias[e];
    }
    // The output's rows are aligned and divide by kColsAThread.
    *reinterpret_cast<uint2*>(call.output + (first_token + token) * call.output_stride + first_col + offset) =
        make_uint2(epilogue.round(value[0], value[1]), epilogue.round(value[2], value[3]));
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks)
    scaled_mm_split_kernel(const __grid_constant__ Call call, const __grid_constant__ CUtensorMap left_map,
                           const __grid_constant__ CUtensorMap right_map) {
  extern __shared__ __align__(kSwizzleAtomBytes) uint8_t dynamic_shared[];
  SharedMemory<C>& shared = *reinterpret_cast<SharedMemory<C>*>(dynamic_shared);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const uint32_t rank = cluster_rank();
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&left_map);
    prefetch_tensor_map(&right_map);
    shared.ring.init();
    fence_barrier_init();
  }
  __syncthreads();
  const int tile = blockIdx.x / call.splits;
  const int token_tile = tile / call.row_tiles;
  const int first_col = (tile - token_tile * call.row_tiles) * kTileRows<C>, first_token = token_tile * C::kCols;
  const int begin = call.k_blocks * rank / call.splits, end = call.k_blocks * (rank + 1) / call.splits;
  const bool is_consumer = warp < C::kConsumers * kWarpgroup / 32;
  ColumnConstants constants = {};
  Position<C> at;
  if (C::kBlockwise && warp == C::kThreads / 32 - 1) {
    wait_for_predecessor();
    if constexpr (C::kBlockwise) {
      produce_scales<C>(shared.ring, at, call.a_block_scales, first_token, call.epilogue.rows - 1, call.b_block_scales,
                        first_col, call.epilogue.columns - 1, begin, end);
    }
  } else if (!is_consumer) {
    if (elect_one()) {
      wait_for_predecessor();
      produce<C>(shared.ring, at, &left_map, &right_map, first_col, first_token, begin, end, call.box_rows);
    }
    __syncwarp();
  } else {
    wait_for_predecessor();
    constexpr int kAllConsumers = 1;  // the barrier's number
    const int consumer = warp / 4, lane = threadIdx.x % 32;
    constants.load(call.epilogue, first_col + threadIdx.x % kVectors<C> * kColsAThread);
    if (threadIdx.x < C::kCols) shared.row_scales[threadIdx.x] = call.epilogue.row_scale(first_token + threadIdx.x);
    Sums<C> sums;
    if constexpr (C::kBlockwise) {
      multiply_columns<C>(shared.ring, at, end - begin, sums, release_successors);
    } else {
      multiply<C>(shared.ring, at, end - begin, consumer, sums, release_successors);
    }
    // The partial sums take the place of the ring.
    named_barrier_sync(kAllConsumers, C::kConsumers * kWarpgroup);
    const int row = warp * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < C::kCols / 2; ++i) {
      shared.partial[8 * (i / 4) + 2 * (lane % 4) + i % 2][row + 8 * (i / 2 % 2)] = sums[0][i];
    }
  }
  cluster_sync();
  if (is_consumer) store_share<C>(call, shared, first_col, first_token, rank, constants);
  // Others may still read what this block has left for them.
  cluster_sync();
}

template <class C>
Status launch_split(const ScaledMmParams& params, int splits, bool pdl, Stream stream) {
  static_assert(sizeof(SharedMemory<C>) <= kSharedBytes);
  const char* name = params.operator_name;
  const Call call = {.epilogue = epilogue_of(params),
                     .a_block_scales = params.a_block_scales,
                     .b_block_scales = params.b_block_scales,
                     .output = static_cast<uint16_t*>(params.output),
                     .output_stride = params.output_stride,
                     .k_blocks = ceil_div(params.k, kBlockK),
                     .splits = splits,
                     .row_tiles = ceil_div(params.n, kTileRows<C>),
                     .box_rows = box_rows_of(params.n, kTileRows<C>) + box_rows_of(params.m, C::kCols)};
  CUtensorMap left_map, right_map;
  SGL_RETURN_IF_ERROR(encode_operand(name, &left_map, params.b, params.n, params.k, params.b_stride, kTileRows<C>));
  SGL_RETURN_IF_ERROR(encode_operand(name, &right_map, params.a, params.m, params.k, params.a_stride, C::kCols));
  SGL_RETURN_IF_ERROR(allow_shared_memory(name, scaled_mm_split_kernel<C>, sizeof(SharedMemory<C>)));
  const LaunchShape shape = {.grid = dim3(call.row_tiles * ceil_div(params.m, C::kCols) * splits),
                             .block = dim3(C::kThreads),
                             .shared_bytes = sizeof(SharedMemory<C>),
                             .pdl = pdl,
                             .cluster = splits};
  return launch(name, scaled_mm_split_kernel<C>, shape, stream, call, left_map, right_map);
}

}  // namespace sgl_kernel::SGL_TARGET::scaled_mm_split
