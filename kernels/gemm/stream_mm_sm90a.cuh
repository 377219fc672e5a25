// Products of few tokens with a large weight on Hopper, where each warp streams its own share of the weight.
//
// Operands are swapped: columns of the weight fill the rows of the tensor core's instruction and tokens its columns. A
// warp takes its columns along a range of K in steps of kStepK. The copy engine brings a step with one instruction to a
// ring in shared memory that is the warp's own, W::kStages steps ahead: no warp waits for another before the end.
// Tokens lie in shared memory, too, for the block's whole range of K, or in chunks of it where that is too long.
//
// Grid: x the splits of K, which are a cluster; y tiles of columns; z tiles of tokens. A block's warps are column_warps
// side by side, the others share out K. Their sums meet in shared memory, and those of the splits in the cluster's:
// each block adds up its share of the tile, in the order of K.
//
// Bound by reading the weight and by what comes before and after it: 4-bit weights of N x K = 9216 x 4096 in 9.6 µs, of
// which reading alone, without products, takes 7.1 (GPTQ, a token, on an H200, 2026-11-23). Deeper rings were slower:
// the tokens come later.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/base/launch.h"
#include "kernels/device/cluster_sm90.cuh"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/pipeline_sm90.cuh"
#include "kernels/device/tma_sm90.cuh"

namespace sgl_kernel::SGL_TARGET::stream_mm {

inline constexpr int kWarpShift = 3, kWarps = 1 << kWarpShift, kThreads = 32 * kWarps;
inline constexpr int kTokenBytes = 2;
inline constexpr int kPadBytes = 16;  // behind each token: neighbours' loads then lie in different banks
inline constexpr int kSumPad = 4;     // numbers behind each token's sums, for the same reason

// How the work is shared out.
struct Plan {
  int column_warps, depth_shift;  // of a block; the others, a power of two
  int splits;                     // of K
  int steps;                      // along K
  int least, longer;              // steps of a block; the first `longer` ones have one more
  int chunk_steps;                // of K's, whose tokens are in shared memory at a time
  int parts_at;                   // where in shared memory the splits' sums come
};

// The share of part `part` of things: it is `least`, or one more of the first `longer` ones.
struct Range {
  int begin, end;
};
__device__ __forceinline__ Range range_of(int begin, int least, int longer, int part) {
  const int first = begin + part * least + min(part, longer);
  return {first, first + least + (part < longer ? 1 : 0)};
}

template <class W>
inline constexpr int kTokens = 8 * W::kTokenTiles;
template <class W>
inline constexpr int kStepTokenBytes = W::kStepK * kTokenBytes;

// Copies the tokens of the steps [begin, end).
template <class W>
__device__ __forceinline__ void stage_tokens(const typename W::Params& params, char* tokens, int pitch,
                                             int64_t first_row, int rows, int begin, int end) {
  constexpr int kBytes = 16, kNumbers = kBytes / kTokenBytes;  // of a copy
  constexpr int kBatch = 4;                                    // copies of a thread, on their way at once
  const int copies = (end - begin) * (W::kStepK / kNumbers);   // of a row
  const int64_t stride = params.token_stride();
  const char* const first_token = static_cast<const char*>(params.tokens()) + first_row * stride;
  const uint32_t inverse = 0xffffffffu / copies + 1;  // 2^32 / copies, rounded up: exact as copies are a few thousand
#pragma unroll 1
  for (int first = threadIdx.x; first < rows * copies; first += kBatch * kThreads) {
    uint4 numbers[kBatch];
    char* to[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int index = first + i * kThreads;
      if (index >= rows * copies) break;
      const int row = static_cast<int>(__umulhi(index, inverse)), copy = index - row * copies;
      const int64_t k = static_cast<int64_t>(begin) * W::kStepK + copy * kNumbers;
      const bool inside = k < params.k;  // K is a multiple of kNumbers
      const char* const from = first_token + row * stride + (inside ? k * kTokenBytes : 0);
      to[i] = tokens + row * pitch + copy * kBytes;
      if constexpr (W::kArranges) {
        numbers[i] = inside ? __ldg(reinterpret_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
      } else {
        copy_async<kBytes>(to[i], from, inside ? kBytes : 0);
      }
    }
    if constexpr (W::kArranges) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i * kThreads < rows * copies) *reinterpret_cast<uint4*>(to[i]) = W::arranged(numbers[i]);
      }
    }
  }
  commit_copies();
}

// W: the format. It has
//   Params                  with m, n, k and of the tokens [m, k] of 16 bits, tokens() and token_stride() in bytes
//   kTokenTiles             the block's tokens, in eights
//   kColumns, kStepK        a warp's step: so many columns by so many along K
//   kStepBytes, kStages     its bytes in the warp's ring of so many steps
//   kStepMicroseconds       what a step takes, as choose_plan() has it
//   kBlocks                 of a multiprocessor
//   load(), prefetch()      ask for a step, in shared memory or in the L2 cache; one thread
//   kArranges, arranged()   whether and how eight numbers of a token are reordered
//   token_offset()          where in a step's tokens the lane's begin
//   W(params, first_column of the warp), start() before each run of steps, add() for each step, for_each_four(),
//   store()
template <class W>
__global__ void __launch_bounds__(kThreads, W::kBlocks)
    stream_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ typename W::Params params,
                  const __grid_constant__ Plan plan) {
  extern __shared__ __align__(1024) char shared[];  // rings of the warps; tokens
  __shared__ Barrier full[kWarps][W::kStages];
  release_successors();
  // The same number in the whole warp, which the compiler then knows.
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const int depth_warps = 1 << plan.depth_shift;
  const int column_warp = warp & (plan.column_warps - 1), depth_warp = warp >> (kWarpShift - plan.depth_shift);
  const int tile_columns = plan.column_warps * W::kColumns;
  const int64_t block_column = static_cast<int64_t>(blockIdx.y) * tile_columns;
  const int64_t first_column = block_column + column_warp * W::kColumns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.z) * kTokens<W>;
  const int rows = static_cast<int>(min(int64_t{kTokens<W>}, params.m - first_row));
  const Range block = range_of(0, plan.least, plan.longer, blockIdx.x);
  const auto warp_range = [&](int begin, int end) {
    const int count = end - begin;
    return range_of(begin, count >> plan.depth_shift, count & (depth_warps - 1), depth_warp);
  };
  char* const ring = shared + warp * (W::kStages * W::kStepBytes);
  char* const tokens = shared + kWarps * W::kStages * W::kStepBytes;
  const int pitch = plan.chunk_steps * kStepTokenBytes<W> + kPadBytes;
  const bool loads = first_column < params.n;
  // The tile in vectors of neighbouring columns, shared out over the splits.
  const int row_vectors = tile_columns / 4, row_shift = __ffs(row_vectors) - 1, vectors = rows * row_vectors;
  const int share = (vectors + plan.splits - 1) / plan.splits;
  const int own = max(min(share, vectors - static_cast<int>(blockIdx.x) * share), 0);
  float4* const parts = reinterpret_cast<float4*>(shared + plan.parts_at);  // [splits][share]
  __shared__ Barrier received;
  if (plan.splits > 1) {
    if (threadIdx.x == 0) {
      received.init(1);
      fence_barrier_init();
      received.arrive_and_expect(own * plan.splits * static_cast<int>(sizeof(float4)));
    }
    __syncwarp();
    arrive_at_cluster();
  }

  if (elect_one()) {
    for (int stage = 0; stage < W::kStages; ++stage) full[warp][stage].init(1);
    fence_barrier_init();
    if (loads) {
      const Range mine = warp_range(block.begin, min(block.begin + plan.chunk_steps, block.end));
#pragma unroll 1
      for (int step = mine.begin; step < min(mine.begin + W::kStages, mine.end); ++step)
        W::prefetch(&map, first_column, step);
    }
  }
  __syncwarp();
  wait_for_predecessor();

  W weight(params, first_column);
  RingPosition<W::kStages> taken, asked;
  const auto load = [&](int step) {
    Barrier* const barrier = &full[warp][asked.index];
    barrier->arrive_and_expect(W::kStepBytes);
    W::load(ring + asked.index * W::kStepBytes, &map, barrier, first_column, step);
  };
  for (int chunk = block.begin; chunk < block.end; chunk += plan.chunk_steps) {
    const int chunk_end = min(chunk + plan.chunk_steps, block.end);
    const Range mine = loads ? warp_range(chunk, chunk_end) : Range{0, 0};
    // The first step, then the tokens, without which it is no use, then the others.
    const auto load_steps = [&](int first, int last) {
#pragma unroll 1
      for (int step = first; step < min(last, mine.end); ++step) {
        if (elect_one()) load(step);
        asked.advance();
      }
    };
    load_steps(mine.begin, mine.begin + 1);
    if (chunk > block.begin) __syncthreads();  // nobody reads the chunk before
    stage_tokens<W>(params, tokens, pitch, first_row, rows, chunk, chunk_end);
    load_steps(mine.begin + 1, mine.begin + W::kStages);
    weight.start(params, mine.begin, mine.end);
    wait_for_copies<0>();
    __syncthreads();
    const char* lane_tokens = tokens + (mine.begin - chunk) * kStepTokenBytes<W> + W::token_offset(pitch);
#pragma unroll 1
    for (int step = mine.begin; step < mine.end; ++step) {
      full[warp][taken.index].wait(taken.parity);
      weight.add(ring + taken.index * W::kStepBytes, lane_tokens, 8 * pitch);
      taken.advance();
      lane_tokens += kStepTokenBytes<W>;
      __syncwarp();
      if (step + W::kStages < mine.end) {
        if (elect_one()) load(step + W::kStages);
        asked.advance();
      }
    }
  }

  __syncthreads();  // the rings and the tokens are done with
  const int sum_pitch = tile_columns + kSumPad;
  float* const partial = reinterpret_cast<float*>(shared);  // [depth_warps][kTokens][sum_pitch]
  weight.for_each_four([&](int column, int token, const float4& four) {
    float* const at = partial + (depth_warp * kTokens<W> + token) * sum_pitch + column_warp * W::kColumns + column;
    *reinterpret_cast<float4*>(at) = four;
  });
  __syncthreads();
  const auto store = [&](int vector, const float4& total) {
    const int64_t column = block_column + (vector & (row_vectors - 1)) * 4;
    if (column < params.n) W::store(params, first_row + (vector >> row_shift), column, total);
  };
  if (plan.splits > 1) wait_for_cluster();                 // whose barriers are ready now
  const uint32_t inverse_share = 0xffffffffu / share + 1;  // 2^32 / share, rounded up; of 1 it is 0
#pragma unroll 1
  for (int i = threadIdx.x; i < vectors; i += kThreads) {
    const float4* const at =
        reinterpret_cast<const float4*>(partial + (i >> row_shift) * sum_pitch + (i & (row_vectors - 1)) * 4);
    float4 total = *at;
    for (int depth = 1; depth < depth_warps; ++depth) add_to(total, at[depth * kTokens<W> * sum_pitch / 4]);
    if (plan.splits == 1) {
      store(i, total);
    } else {
      const int owner = inverse_share == 0 ? i : static_cast<int>(__umulhi(i, inverse_share));
      send_to_block(owner, parts + blockIdx.x * share + i - owner * share, total, &received);
    }
  }
  if (plan.splits == 1 || own == 0) return;
  received.wait(0);
#pragma unroll 1
  for (int i = threadIdx.x; i < own; i += kThreads) {
    float4 total = parts[i];
#pragma unroll
    for (int split = 1; split < kMostClusterBlocks; ++split) {
      if (split < plan.splits) add_to(total, parts[split * share + i]);
    }
    store(blockIdx.x * share + i, total);
  }
}

template <class W>
inline constexpr int kRingBytes = kWarps * W::kStages * W::kStepBytes;

// Of a multiprocessor's shared memory, what a block may have.
template <class W>
inline constexpr int kMostShared = 224 * 1024 / W::kBlocks;

template <class W>
int parts_bytes(const Plan& plan) {  // shares are rounded up
  return plan.splits > 1 ? (kTokens<W> * plan.column_warps * W::kColumns + plan.splits * 4) * 4 : 0;
}

// The steps whose tokens fit into shared memory, or less than 1 if the plan is none.
template <class W>
int most_chunk_steps(const Plan& plan) {
  return ((kMostShared<W> - kRingBytes<W> - parts_bytes<W>(plan)) / kTokens<W> - kPadBytes) / kStepTokenBytes<W>;
}

// The plan that is expected to take the least, and that as *cost.
template <class W>
Plan choose_plan(int64_t m, int64_t n, int64_t k, double* cost) {
  // In µs on an H200, as measured 2026-11-23: what a block takes besides its warps' steps, what a cluster and each of
  // its splits do, and each step's tokens.
  constexpr double kStart = 5.0, kCluster = 0.5, kMerge = 0.03, kStepTokens = 0.05 * W::kTokenTiles;
  const int steps = static_cast<int>((k + W::kStepK - 1) / W::kStepK);
  const int64_t row_tiles = (m + kTokens<W> - 1) / kTokens<W>;
  Plan best = {};
  for (int splits = 1; splits <= std::min(steps, kMostClusterBlocks); ++splits) {
    for (int depth_shift = 0; depth_shift <= kWarpShift; ++depth_shift) {
      const Plan plan = {.column_warps = kWarps >> depth_shift,
                         .depth_shift = depth_shift,
                         .splits = splits,
                         .steps = steps,
                         .least = steps / splits,
                         .longer = steps % splits};
      if (most_chunk_steps<W>(plan) < 1) continue;
      const int64_t columns = plan.column_warps * W::kColumns;
      const int64_t clusters = row_tiles * ((n + columns - 1) / columns);
      // With one block a multiprocessor they fit less well still.
      const int64_t at_once =
          W::kBlocks == 1 ? (kClustersAtOnce[splits - 1] - splits / 3) / 2 : kClustersAtOnce[splits - 1];
      const int block_steps = plan.least + (plan.longer > 0 ? 1 : 0);
      const int warp_steps = (block_steps + (1 << depth_shift) - 1) >> depth_shift;
      const double block_cost = kStart + W::kStepMicroseconds * warp_steps + kStepTokens * block_steps +
                                (splits > 1 ? kCluster + kMerge * splits : 0.0);
      const double plan_cost = static_cast<double>((clusters + at_once - 1) / at_once) * block_cost;
      if (best.splits == 0 || plan_cost < *cost) {
        best = plan;
        *cost = plan_cost;
      }
    }
  }
  return best;
}

// The grid's limit along y and z, and the columns and rows that it leaves to any plan.
inline constexpr int64_t kMostTiles = std::min(kMostGridY, kMostGridZ);
template <class W>
inline constexpr int64_t kMostColumns = kMostTiles * W::kColumns;
template <class W>
inline constexpr int64_t kMostRows = kMostTiles * kTokens<W>;

template <class W>
Status multiply(const char* operator_name, const CUtensorMap& map, const typename W::Params& params, Plan plan,
                Stream stream) {
  const int tile_columns = plan.column_warps * W::kColumns;
  plan.chunk_steps = std::min(plan.least + (plan.longer > 0 ? 1 : 0), most_chunk_steps<W>(plan));
  const int tokens_bytes = kTokens<W> * (plan.chunk_steps * kStepTokenBytes<W> + kPadBytes);
  const int sum_bytes = (kTokens<W> * (tile_columns + kSumPad) * 4) << plan.depth_shift;
  plan.parts_at = std::max(kRingBytes<W> + tokens_bytes, sum_bytes);
  const int shared_bytes = plan.parts_at + parts_bytes<W>(plan);
  const auto kernel = stream_kernel<W>;
  SGL_RETURN_IF_ERROR(allow_shared_memory(operator_name, kernel, shared_bytes));
  const LaunchShape shape = {
      .grid = dim3(plan.splits, static_cast<unsigned>((params.n + tile_columns - 1) / tile_columns),
                   static_cast<unsigned>((params.m + kTokens<W> - 1) / kTokens<W>)),
      .block = kThreads,
      .shared_bytes = static_cast<size_t>(shared_bytes),
      .pdl = true,
      .cluster = plan.splits};
  return launch(operator_name, kernel, shape, stream, map, params, plan);
}

}  // namespace sgl_kernel::SGL_TARGET::stream_mm
