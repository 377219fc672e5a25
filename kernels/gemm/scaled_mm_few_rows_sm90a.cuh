// Scaled products of few rows on Hopper: the weights are read once, as fast as memory gives them.
//
// left = A (the tokens; the tensor core's 64 rows are not filled, which costs nothing here), right = B^T (the weights).
// K is split over the blocks of a cluster; each leaves its partial sums in its shared memory, and all of them then add
// up their share of the tile from there, in the order of K. Sums of e4m3 products over more than kPromotedBlocks are
// promoted: stretches of K as long are added in f32.
//
// Grid: a cluster a tile of kTokens by kCols. Two blocks fit a multiprocessor: two of this kernel, or one of it and one
// of the next kernel, which waits and meanwhile brings its first weights to the L2 cache. In the second case it matters
// where blocks are: once some multiprocessors have two blocks of a kernel and others none, it is the other way round
// for the next kernel and so on, and each takes a third longer. So there is a block for each multiprocessor, even if
// the last ones only repeat the last tile, and the next kernel may start long before the first block ends.
//
// Tiles of 128 tokens, and of 64 where a block has its multiprocessor for itself for long, take all of its shared
// memory: the tokens fill much of a stage, and with half the stages too few bytes of the weights are under way. They
// are as wide as leaves each multiprocessor one of them, K split in two if that makes it wider: each brings all tokens
// to its multiprocessor, and 132 times 128 x K bytes take longer than the weights. 128 rows take 4 to 14% less so than
// by the persistent kernel; 64 x 9216 x 4096, and 64 x 7168 x 16384 of int8, 4% less than with two blocks a
// multiprocessor.
//
// Bound by memory, and for small weights by what comes before and after it. Weights leave the L2 cache first, because
// else those that the next kernel has asked for leave it before they are read: 3% of 64 x 7168 x 16384.
//
// Measured on an H200, 2026-11-23, µs:
//                        N x K   9216 x 4096   4096 x 8192   3072 x 4096   4096 x 1536   2112 x 7168   7168 x 16384
//   16 rows, e4m3                11.3          10.7          5.6           3.5           6.1           30.9
//   64 rows, e4m3                12.0          10.8          6.0           3.9           7.1           31.5
//   128 rows, e4m3               13.2          12.2          6.8           4.3           7.9           37.9
//   16 rows, int8                11.9          10.7          5.5           3.4           6.2           30.9
//   16 rows, blockwise           11.8          10.9          5.5           3.3           6.4           32.4
//   16 rows, e4m3, GB/s          3375          3166          2293          1853          2516          3815
// Not faster: with up to 16 tokens, one block a multiprocessor with all of its shared memory; more than four splits;
// more weights asked for in advance (they are evicted again); blocks that begin at different K; two blocks that bring
// the tokens, or the weights, to both of them by multicast (128 x 4096 x 7168 takes 19.5 or 13.5 µs instead of 11.3);
// sums sent to the block that adds them up (16 x 2112 x 7168 takes 6.9 µs instead of 5.9).
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/base/launch.h"
#include "kernels/device/cluster.cuh"
#include "kernels/device/matmul_sm90.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/gemm/scaled_mm_block_scales_sm90a.cuh"
#include "kernels/gemm/scaled_mm_epilogue_sm90a.cuh"
#include "kernels/gemm/scaled_mm_params.h"

namespace sgl_kernel::SGL_TARGET::scaled_mm_few_rows {

using namespace matmul;

// kTokens is 16 or a multiple of 64. kBlockwise: each block of kScaleBlock of K has scales, for a token and for
// kScaleBlock columns. kBlocks, 1 or 2, fit a multiprocessor.
template <class Sum_, int kTokens_, int kCols_, int kBlocks_, bool kBlockwise_ = false>
struct Config {
  using Sum = Sum_;
  static constexpr int kTokens = kTokens_, kCols = kCols_, kLeftRows = kTokens;
  static constexpr int kRowBlocks = 1, kConsumers = (kTokens + kInstructionRows - 1) / kInstructionRows;
  static constexpr bool kBlockwise = kBlockwise_;
  static constexpr int kScales = kBlockwise ? kTokens + kScalesOfB : 0;
  static constexpr bool kPromotes = std::is_same_v<Sum, float> && !kBlockwise;
  static constexpr int kBlocks = kBlocks_;
  // Of the 227 KiB of a multiprocessor; a little of a block's share is the system's.
  static constexpr int kSharedBytes = (kBlocks == 1 ? 227 : 113) * 1024;
  static constexpr int kOtherBytes = 2048;  // room for barriers and the scales of tokens, each padded
  static constexpr int kStageBytes = (kLeftRows + kCols) * kBlockK + kScales * sizeof(float);
  static constexpr int kStages = (kSharedBytes - kOtherBytes) / kStageBytes;
  static constexpr int kThreads = kConsumers * kWarpgroup + (kBlockwise ? 64 : 32);
  static constexpr int kMostSums = 120;  // registers of a thread for sums and totals
};

template <class C>
struct SharedMemory {
  // A token's partial sums, padded so that the tokens that a warp writes at a time lie in different banks.
  static constexpr int kPitch = C::kCols + (C::kCols % 16 == 0 ? 8 : 0);
  union {
    Ring<C> ring;
    alignas(16) typename C::Sum partial[C::kTokens][kPitch];
  };
  float row_scales[C::kTokens];
  __device__ SharedMemory() {}
};

struct Call {
  Epilogue epilogue;
  ScaleMatrix a_block_scales, b_block_scales;
  uint16_t* output;
  int64_t output_stride;
  int k_blocks, splits;
  int released;    // K blocks that a block copies before the next kernel may start
  int prefetched;  // K blocks of the weights that it asks for in the L2 cache before the preceding kernel has ended
  int tiles, col_tiles;
  int box_rows;  // of both operands together
};

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

// The producer's loop over K blocks [begin, end) of the tile at (token, col).
template <class C>
__device__ __forceinline__ void produce_once(const Call& call, Ring<C>& ring, Position<C>& at,
                                             const CUtensorMap* left_map, const CUtensorMap* right_map, int token,
                                             int col, int begin, int end) {
  for (int block = begin; block < end; ++block) {
    if (block == begin + call.released) release_successors();
    Barrier* full = &ring.full[at.index];
    ring.empty[at.index].wait(at.parity ^ 1);
    full->arrive_and_expect(call.box_rows * kBlockK);
    load_matrix_box(ring.left[at.index], left_map, full, token, block * kBlockK);
    load_matrix_box_once(ring.right[at.index], right_map, full, col, block * kBlockK);
    at.advance();
  }
}

// This rank's share of the tile at (output column, token): sums over the ranks, scales, stores.
template <class C>
__device__ __forceinline__ void store_share(const Call& call, SharedMemory<C>& shared, int first_col, int first_token,
                                            uint32_t rank, const ColumnConstants& constants) {
  using Sum = typename C::Sum;
  constexpr int kTokensAStep = C::kConsumers * kWarpgroup / kVectors<C>;
  const Epilogue& epilogue = call.epilogue;
  const int tokens = min(C::kTokens, epilogue.rows - first_token);
  const int offset = threadIdx.x % kVectors<C> * kColsAThread;
  if (threadIdx.x >= kTokensAStep * kVectors<C> || first_col + offset >= epilogue.columns) return;
  for (int token = rank * kTokensAStep + threadIdx.x / kVectors<C>; token < tokens;
       token += call.splits * kTokensAStep) {
    const Sum* mine = &shared.partial[token][offset];
    Sum total[kColsAThread] = {};
    const auto add = [&](const uint4& loaded) {
      const Sum* part = reinterpret_cast<const Sum*>(&loaded);
#pragma unroll
      for (int e = 0; e < kColsAThread; ++e) total[e] += part[e];
    };
    if (call.splits == 1) {
      add(*reinterpret_cast<const uint4*>(mine));
    } else {
      for (int split = 0; split < call.splits; ++split) add(load_from_block(mine, split));
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
  const int place = blockIdx.x / call.splits, tile = min(place, call.tiles - 1);
  const int token_tile = tile / call.col_tiles;
  const int first_col = (tile - token_tile * call.col_tiles) * C::kCols, first_token = token_tile * C::kTokens;
  const int begin = call.k_blocks * rank / call.splits, end = call.k_blocks * (rank + 1) / call.splits;
  constexpr int kAllConsumers = 1;  // the barrier's number
  const bool is_consumer = warp < C::kConsumers * kWarpgroup / 32;
  ColumnConstants constants = {};
  Position<C> at;
  if (C::kBlockwise && warp == C::kThreads / 32 - 1) {
    if constexpr (C::kBlockwise) {
      wait_for_predecessor();
      produce_scales<C>(shared.ring, at, call.a_block_scales, first_token, call.epilogue.rows - 1, call.b_block_scales,
                        first_col, call.epilogue.columns - 1, begin, end);
    }
  } else if (!is_consumer) {
    if (elect_one()) {
      // Before the predecessor has ended: the cache is coherent, so what it still writes is seen all the same.
      for (int block = begin; block < min(begin + call.prefetched, end); ++block) {
        prefetch_matrix_box(&right_map, first_col, block * kBlockK);
      }
      wait_for_predecessor();
      produce_once<C>(call, shared.ring, at, &left_map, &right_map, first_token, first_col, begin, end);
    }
    __syncwarp();
  } else {
    wait_for_predecessor();
    const int consumer = warp / 4, lane = threadIdx.x % 32;
    constants.load(call.epilogue, first_col + threadIdx.x % kVectors<C> * kColsAThread);
    if (threadIdx.x < C::kTokens) shared.row_scales[threadIdx.x] = call.epilogue.row_scale(first_token + threadIdx.x);
    Sums<C> sums;
    if constexpr (C::kBlockwise) {
      multiply_blocks<C>(shared.ring, at, end - begin, consumer, first_col, sums, [] {});
    } else if constexpr (C::kPromotes) {
      multiply_promoted<C>(shared.ring, at, end - begin, consumer, sums, [] {});
    } else {
      multiply<C>(shared.ring, at, end - begin, consumer, sums, [] {});
    }
    // The partial sums take the place of the ring.
    named_barrier_sync(kAllConsumers, C::kConsumers * kWarpgroup);
    using Pair = std::conditional_t<std::is_same_v<typename C::Sum, float>, float2, int2>;
#pragma unroll
    for (int i = 0; i < C::kCols / 2; i += 2) {
      const int row = warp * 16 + lane / 4 + 8 * (i / 2 % 2);
      if (row >= C::kTokens) continue;
      auto* pair = &shared.partial[row][8 * (i / 4) + 2 * (lane % 4)];
      *reinterpret_cast<Pair*>(pair) = {sums[0][i], sums[0][i + 1]};
    }
  }
  if (call.splits > 1) {
    cluster_sync();
  } else if (is_consumer) {
    named_barrier_sync(kAllConsumers, C::kConsumers * kWarpgroup);
  }
  if (is_consumer && place == tile) store_share<C>(call, shared, first_col, first_token, rank, constants);
  // Others may still read what this block has left for them.
  if (call.splits > 1) cluster_sync_relaxed();
}

template <class C>
Status launch_few_rows(const ScaledMmParams& params, int splits, Stream stream) {
  static_assert(sizeof(SharedMemory<C>) <= C::kSharedBytes);
  // What finds the memory idle between two kernels, of a multiprocessor; more would be evicted again.
  constexpr int kPrefetchedBytes = 24 * 1024;
  // The next kernel may start with this one: it then asks for its weights while memory is idle in between. With so few
  // K blocks a little later is faster, and blocks do not yet differ in how far they are.
  constexpr int kShort = 16;
  // Larger clusters do not fill all of the chip's groups of multiprocessors.
  constexpr int kMostSplitsEverywhere = 2;
  const char* name = params.operator_name;
  const int col_tiles = ceil_div(params.n, C::kCols), tiles = col_tiles * ceil_div(params.m, C::kTokens);
  const int k_blocks = ceil_div(params.k, kBlockK), k_blocks_each = ceil_div(k_blocks, splits);
  const int sms = num_sms(), blocks = tiles * splits;
  const int tile_bytes = C::kCols * kBlockK * (blocks <= sms ? 1 : C::kBlocks);
  const Call call = {.epilogue = epilogue_of(params),
                     .a_block_scales = params.a_block_scales,
                     .b_block_scales = params.b_block_scales,
                     .output = static_cast<uint16_t*>(params.output),
                     .output_stride = params.output_stride,
                     .k_blocks = k_blocks,
                     .splits = splits,
                     .released = k_blocks_each < kShort ? k_blocks_each / 2 : 0,
                     .prefetched = std::max(1, kPrefetchedBytes / tile_bytes),
                     .tiles = tiles,
                     .col_tiles = col_tiles,
                     .box_rows = box_rows_of(params.m, C::kTokens) + box_rows_of(params.n, C::kCols)};
  CUtensorMap left_map, right_map;
  SGL_RETURN_IF_ERROR(encode_operand(name, &left_map, params.a, params.m, params.k, params.a_stride, C::kTokens));
  SGL_RETURN_IF_ERROR(encode_operand(name, &right_map, params.b, params.n, params.k, params.b_stride, C::kCols));
  SGL_RETURN_IF_ERROR(allow_shared_memory(name, scaled_mm_few_rows_kernel<C>, sizeof(SharedMemory<C>)));
  const bool is_everywhere = C::kBlocks > 1 && splits <= kMostSplitsEverywhere && blocks > sms / 2;
  const int everywhere = is_everywhere ? sms / splits * splits : 0;
  const LaunchShape shape = {.grid = dim3(std::max(blocks, everywhere)),
                             .block = dim3(C::kThreads),
                             .shared_bytes = sizeof(SharedMemory<C>),
                             .pdl = true,
                             .cluster = splits};
  return launch(name, scaled_mm_few_rows_kernel<C>, shape, stream, call, left_map, right_map);
}

}  // namespace sgl_kernel::SGL_TARGET::scaled_mm_few_rows
