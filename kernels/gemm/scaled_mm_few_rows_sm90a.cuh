// Scaled products of few rows of e4m3 on Hopper: the weights are read once, as fast as memory gives them.
//
// left = A (the tokens; the tensor core's 64 rows are not filled, which costs nothing here), right = B^T (the weights).
// A tile is as wide as gives each multiprocessor the same. K is split over the blocks of a cluster; each leaves its
// partial sums in its shared memory, and all of them then add up their share of the tile from there, in the order of K.
//
// Grid: a cluster a tile of kTokens by kCols. Bound by memory, and for small weights by what comes before and after it:
// the next kernel's blocks find room beside those that run, and bring their first weights to the L2 cache while they
// wait.
//
// Measured on an H200, 2026-11-23, 16 rows:
//   N x K   9216 x 4096   4096 x 8192   3072 x 4096   4096 x 1536   2112 x 7168   7168 x 16384   7168 x 2048
//   µs      10.9          10.5          5.5           3.6           6.2           30.4           5.3
//   GB/s    3483          3211          2309          1801          2459          3876           2809
#pragma once

#include "kernels/base/launch.h"
#include "kernels/device/matmul_sm90.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/gemm/scaled_mm_epilogue_sm90a.cuh"
#include "kernels/gemm/scaled_mm_params.h"

namespace sgl_kernel::SGL_TARGET::scaled_mm_few_rows {

using namespace matmul;

// Of the 227 KiB of a multiprocessor; a little of a block's share is the system's.
inline constexpr int kSharedBytes = 113 * 1024;

// kTokens is 16 or a multiple of 64.
template <int kTokens_, int kCols_>
struct Config {
  using Sum = float;
  static constexpr int kTokens = kTokens_, kCols = kCols_, kLeftRows = kTokens;
  static constexpr int kRowBlocks = 1, kConsumers = (kTokens + kInstructionRows - 1) / kInstructionRows, kScales = 0;
  static constexpr int kOtherBytes = 2048;  // room for barriers and the scales of tokens, each padded
  static constexpr int kStages = (kSharedBytes - kOtherBytes) / ((kLeftRows + kCols) * kBlockK);
  static constexpr int kThreads = kConsumers * kWarpgroup + 32;
  static constexpr int kBlocks = 2;  // of a multiprocessor, at least
};

template <class C>
struct SharedMemory {
  // A token's partial sums, padded so that the tokens that a warp writes at a time lie in different banks.
  static constexpr int kPitch = C::kCols + (C::kCols % 16 == 0 ? 8 : 0);
  union {
    Ring<C> ring;
    alignas(16) float partial[C::kTokens][kPitch];
  };
  float row_scales[C::kTokens];
  __device__ SharedMemory() {}
};

struct Call {
  Epilogue epilogue;
  uint16_t* output;
  int64_t output_stride;
  int k_blocks, splits;
  int prefetched;  // K blocks of the weights
  int col_tiles;
  int box_rows;  // of both operands together
};

// Four neighbours in the shared memory of a block of the cluster.
__device__ __forceinline__ float4 load_from_rank(const void* mine, uint32_t rank) {
  float4 value;
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n"
      "}\n"
      : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
      : "r"(shared_address(mine)), "r"(rank)
      : "memory");
  return value;
}

// Neighbouring columns of the output that a thread stores at a time, always the same ones of a tile.
inline constexpr int kColsAThread = 4;
template <class C>
inline constexpr int kVectors = C::kCols / kColsAThread;

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

// This rank's share of the tile at (output column, token): sums over the ranks, scales, stores.
template <class C>
__device__ __forceinline__ void store_share(const Call& call, SharedMemory<C>& shared, int first_col, int first_token,
                                            uint32_t rank, const ColumnConstants& constants) {
  constexpr int kTokensAStep = C::kConsumers * kWarpgroup / kVectors<C>;
  const Epilogue& epilogue = call.epilogue;
  const int tokens = min(C::kTokens, epilogue.rows - first_token);
  const int offset = threadIdx.x % kVectors<C> * kColsAThread;
  if (threadIdx.x >= kTokensAStep * kVectors<C> || first_col + offset >= epilogue.columns) return;
  for (int token = rank * kTokensAStep + threadIdx.x / kVectors<C>; token < tokens;
       token += call.splits * kTokensAStep) {
    const float* mine = &shared.partial[token][offset];
    float total[kColsAThread] = {};
    const auto add = [&](const float4& part) {
      total[0] += part.x;
      total[1] += part.y;
      total[2] += part.z;
      total[3] += part.w;
    };
    if (call.splits == 1) {
      add(*reinterpret_cast<const float4*>(mine));
    } else {
      for (int split = 0; split < call.splits; ++split) add(load_from_rank(mine, split));
    }
    const float row_scale = shared.row_scales[token];
    float value[kColsAThread];
#pragma unroll
    for (int e = 0; e < kColsAThread; ++e) {
      value[e] = total[e] * row_scale * constants.scale[e] + constants.bias[e];
    }
    // The output's rows are aligned and divide by kColsAThread.
    *reinterpret_cast<uint2*>(call.output + (first_token + token) * call.output_stride + first_col + offset) =
        make_uint2(epilogue.round(value[0], value[1]), epilogue.round(value[2], value[3]));
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks)
    scaled_mm_few_rows_kernel(const __grid_constant__ Call call, const __grid_constant__ CUtensorMap left_map,
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
  const int token_tile = tile / call.col_tiles;
  const int first_col = (tile - token_tile * call.col_tiles) * C::kCols, first_token = token_tile * C::kTokens;
  const int begin = call.k_blocks * rank / call.splits, end = call.k_blocks * (rank + 1) / call.splits;
  constexpr int kAllConsumers = 1;  // the barrier's number
  const bool is_consumer = warp < C::kConsumers * kWarpgroup / 32;
  ColumnConstants constants = {};
  Position<C> at;
  if (!is_consumer) {
    if (elect_one()) {
      // Before the predecessor has ended: the cache is coherent, so what it still writes is seen all the same.
      for (int block = begin; block < min(begin + call.prefetched, end); ++block) {
        prefetch_matrix_box(&right_map, first_col, block * kBlockK);
      }
      wait_for_predecessor();
      produce<C>(shared.ring, at, &left_map, &right_map, first_token, first_col, begin, end, call.box_rows);
      release_successors();
    }
    __syncwarp();
  } else {
    wait_for_predecessor();
    const int consumer = warp / 4, lane = threadIdx.x % 32;
    constants.load(call.epilogue, first_col + threadIdx.x % kVectors<C> * kColsAThread);
    if (threadIdx.x < C::kTokens) shared.row_scales[threadIdx.x] = call.epilogue.row_scale(first_token + threadIdx.x);
    Sums<C> sums;
    static_assert(kParkedBytes<C::kCols / 2> == 0);
    multiply_promoted<C>(shared.ring, at, end - begin, consumer, nullptr, sums, [] {});
    // The partial sums take the place of the ring.
    named_barrier_sync(kAllConsumers, C::kConsumers * kWarpgroup);
#pragma unroll
    for (int i = 0; i < C::kCols / 2; i += 2) {
      const int row = warp * 16 + lane / 4 + 8 * (i / 2 % 2);
      if (row >= C::kTokens) continue;
      float* pair = &shared.partial[row][8 * (i / 4) + 2 * (lane % 4)];
      *reinterpret_cast<float2*>(pair) = {sums[0][i], sums[0][i + 1]};
    }
  }
  if (call.splits > 1) {
    cluster_sync();
  } else if (is_consumer) {
    named_barrier_sync(kAllConsumers, C::kConsumers * kWarpgroup);
  }
  if (is_consumer) store_share<C>(call, shared, first_col, first_token, rank, constants);
  // Others may still read what this block has left for them.
  if (call.splits > 1) cluster_sync_relaxed();
}

template <class C>
Status launch_few_rows(const ScaledMmParams& params, int splits, int prefetched, Stream stream) {
  static_assert(sizeof(SharedMemory<C>) <= kSharedBytes);
  const char* name = params.operator_name;
  const Call call = {.epilogue = epilogue_of(params),
                     .output = static_cast<uint16_t*>(params.output),
                     .output_stride = params.output_stride,
                     .k_blocks = ceil_div(params.k, kBlockK),
                     .splits = splits,
                     .prefetched = prefetched,
                     .col_tiles = ceil_div(params.n, C::kCols),
                     .box_rows = box_rows_of(params.m, C::kTokens) + box_rows_of(params.n, C::kCols)};
  CUtensorMap left_map, right_map;
  SGL_RETURN_IF_ERROR(encode_operand(name, &left_map, params.a, params.m, params.k, params.a_stride, C::kTokens));
  SGL_RETURN_IF_ERROR(encode_operand(name, &right_map, params.b, params.n, params.k, params.b_stride, C::kCols));
  SGL_RETURN_IF_ERROR(allow_shared_memory(name, scaled_mm_few_rows_kernel<C>, sizeof(SharedMemory<C>)));
  const LaunchShape shape = {.grid = dim3(call.col_tiles * ceil_div(params.m, C::kTokens) * splits),
                             .block = dim3(C::kThreads),
                             .shared_bytes = sizeof(SharedMemory<C>),
                             .pdl = true,
                             .cluster = splits};
  return launch(name, scaled_mm_few_rows_kernel<C>, shape, stream, call, left_map, right_map);
}

}  // namespace sgl_kernel::SGL_TARGET::scaled_mm_few_rows
