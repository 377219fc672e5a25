// Products of few tokens with a large weight on Hopper: the weight goes from memory to registers once, as fast as
// memory gives it, whatever its format.
//
// Operands are swapped: 16 columns of the weight fill the rows of the tensor core's instruction and 8 tokens its
// columns, so that one token wastes no more than it must. A lane's share of the weight comes by loads of 16 bytes
// straight into the registers where it is decoded; nothing of it passes through shared memory. The tokens do, in stages
// along K that all warps of a block share.
//
// Grid: a cluster a tile of kColumns columns by kTokens tokens; its blocks are the splits of K. The warps of a block
// that share columns take turns along K. Their sums meet in the block's shared memory; from there each block of the
// cluster is sent the share of the tile that it adds up, in the order of the splits.
//
// Meant to be bound by memory; bound by the latency of the warps, which issue a third of the time. What the block will
// read is asked for in the L2 cache before the kernel's turn has come (no read: the weight may be a predecessor's
// result), and successors start as soon as there is room.
#pragma once

#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/cluster.cuh"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/pipeline_sm90.cuh"

namespace sgl_kernel::SGL_TARGET::few_tokens {

inline constexpr int kMostSplits = kMostClusterBlocks;

// Weight: the format. It has
//   Params, Sum               what the operator hands to its kernels; float or int
//   kColumnBlocks, kStepK     a warp's step: 16 * kColumnBlocks columns by kStepK along K
//   kColumnWarps              the warps of a block side by side; the others share out K
//   kTokenBytes, kPadBytes    of a token's number in shared memory; behind each token, against bank conflicts
//   has_columns()             whether the warp has any
//   start()                   loads what is needed before the first step
//   Step, load(), add()       a lane's share of a step, its loads, and its products
//   column_of()               the column, in the block's tile, of an instruction's row g, or g + 8 where `lower`
//   prefetch(), stage_tokens(), store()
template <class Weight_, int kTokenTiles_>
struct Config {
  using Weight = Weight_;
  static constexpr int kTokenTiles = kTokenTiles_, kTokens = 8 * kTokenTiles;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kColumnWarps = Weight::kColumnWarps, kDepthWarps = kWarps / kColumnWarps;
  static constexpr int kWarpColumns = 16 * Weight::kColumnBlocks, kColumns = kColumnWarps * kWarpColumns;
  static constexpr int kAhead = 2;                          // steps of a warp on their way
  static constexpr int kBlocks = kTokenTiles <= 2 ? 2 : 1;  // of a multiprocessor
  static constexpr int kStageK = 1024, kStageSteps = kStageK / Weight::kStepK;
  static constexpr int kTurns = kStageSteps / kDepthWarps;                          // steps of a warp in a stage
  static constexpr int kPitch = kStageK * Weight::kTokenBytes + Weight::kPadBytes;  // from token to token
  static constexpr int kStageBytes = kTokens * kPitch;
  static constexpr int kSumPitch = kColumns + 4;  // a lane's columns and tokens then lie in different banks
  static constexpr int kSumBytes = kDepthWarps * kTokens * kSumPitch * 4;
  static constexpr int kReceivedBytes = (kTokens * kColumns + kMostSplits * 4) * 4;  // shares are rounded up
  static constexpr int kSharedBytes = std::max(2 * kStageBytes, kSumBytes) + kReceivedBytes;
  static_assert(kTurns % kAhead == 0);
  static_assert(kPitch % 16 == 0);
};

// The steps of a block: of K, the first `longer` splits have one more than `least`.
struct Splits {
  int count, least, longer;
};

// Divides numbers below 2^15 by one that is, too: what a group's number costs at each step.
class SmallDivisor {
 public:
  __device__ __forceinline__ explicit SmallDivisor(int divisor) : inverse_(0xffffffffu / divisor + 1) {}
  __device__ __forceinline__ int divide(int number) const {
    return inverse_ == 0 ? number : static_cast<int>(__umulhi(number, inverse_));
  }

 private:
  const uint32_t inverse_;  // 2^32 / divisor, rounded up; of 1 it is 0
};

// Stores `value` where block `rank` has what is `mine` here, and tells its barrier.
__device__ __forceinline__ void send(const void* mine, const uint4& value, const Barrier* barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 to, told;\n"
      "mapa.shared::cluster.u32 to, %0, %2;\n"
      "mapa.shared::cluster.u32 told, %1, %2;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [to], {%3, %4, %5, %6}, [told];\n"
      "}\n" ::"r"(shared_address(mine)),
      "r"(shared_address(barrier)), "r"(rank), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
      : "memory");
}

// How the sums of a block's warps, and then those of a cluster's blocks, are added up: each of the splits sends each of
// the others that one's share of the tile. C has Weight, kThreads, kColumns, kTokens, kTokenTiles, kDepthWarps and
// kSumPitch.
template <class C>
class Merge {
 public:
  using W = typename C::Weight;
  using Sum = typename W::Sum;

  // `rows` of the tile are there.
  __device__ __forceinline__ Merge(int splits, int rank, int rows)
      : splits_(splits),
        rank_(rank),
        vectors_(rows * kVectors),
        share_((vectors_ + splits - 1) / splits),
        own_(max(min(share_, vectors_ - rank * share_), 0)) {}

  // Before arrive().
  __device__ __forceinline__ void start(Barrier& received) const {
    if (splits_ == 1 || threadIdx.x != 0) return;
    received.init(1);
    fence_barrier_init();
    received.arrive_and_expect(own_ * splits_ * static_cast<int>(sizeof(Four)));
  }

  // All threads, of whole warps: finish() waits for all of the cluster to have been here.
  __device__ __forceinline__ void arrive() const {
    if (splits_ > 1) arrive_at_cluster();
  }

  // A warp's sums go to `shared`, where nothing else is by now. A barrier of the block follows.
  __device__ __forceinline__ void leave(char* shared, const Sum (&sums)[W::kColumnBlocks][C::kTokenTiles][4],
                                        int column_warp, int depth_warp) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int block = 0; block < W::kColumnBlocks; ++block) {
#pragma unroll
      for (int r = 0; r < C::kTokenTiles; ++r) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = W::column_of(column_warp, block, e / 2, lane / 4);
          *partial_at(shared, depth_warp, 8 * r + lane % 4 * 2 + e % 2, column) = sums[block][r][e];
        }
      }
    }
  }

  // Adds them up, in the order of K. What others send arrives in `received_shared`, 16-byte aligned.
  __device__ __forceinline__ void finish(const typename W::Params& params, char* shared, char* received_shared,
                                         const Barrier& received, int64_t block_column, int64_t first_row) const {
    const auto store = [&](int vector, const Four& total) {
      const int64_t column = block_column + vector % kVectors * kVector;
      if (column < params.n) W::store(params, first_row + vector / kVectors, column, total.of);
    };
    Four* const parts = reinterpret_cast<Four*>(received_shared);  // [split][share]
    const SmallDivisor shares(share_);
    if (splits_ > 1) wait_for_cluster();  // whose barriers are ready now
    for (int i = threadIdx.x; i < vectors_; i += C::kThreads) {
      Four total = {};
#pragma unroll
      for (int depth = 0; depth < C::kDepthWarps; ++depth) {
        add(total, *reinterpret_cast<const Four*>(partial_at(shared, depth, i / kVectors, i % kVectors * kVector)));
      }
      if (splits_ == 1) {
        store(i, total);
      } else {
        const int owner = shares.divide(i);
        send(parts + rank_ * share_ + i - owner * share_, *reinterpret_cast<const uint4*>(&total), &received, owner);
      }
    }
    if (splits_ == 1 || own_ == 0) return;
    received.wait(0);
    for (int i = threadIdx.x; i < own_; i += C::kThreads) {
      Four total = parts[i];
#pragma unroll
      for (int split = 1; split < kMostSplits; ++split) {
        if (split < splits_) add(total, parts[split * share_ + i]);
      }
      store(rank_ * share_ + i, total);
    }
  }

 private:
  // The tile in vectors of neighbouring columns, shared out over the splits.
  static constexpr int kVector = 4, kVectors = C::kColumns / kVector;
  struct alignas(16) Four {
    Sum of[kVector];
  };
  static_assert(sizeof(Four) == 16);

  static __device__ __forceinline__ Sum* partial_at(char* shared, int depth, int token, int column) {
    return reinterpret_cast<Sum*>(shared) + (depth * C::kTokens + token) * C::kSumPitch + column;
  }
  static __device__ __forceinline__ void add(Four& total, const Four& part) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) total.of[e] += part.of[e];
  }

  const int splits_, rank_, vectors_, share_, own_;
};

// Asks for the tokens of a stage as they are, rows `stride` bytes apart: those of steps [begin, end), at most
// kStageSteps.
template <class C>
__device__ __forceinline__ void copy_tokens(const typename C::Weight::Params& params, const char* tokens,
                                            int64_t stride, char* stage, int64_t first_row, int begin, int end) {
  using W = typename C::Weight;
  constexpr int kNumbers = 16 / W::kTokenBytes, kChunks = C::kStageK / kNumbers;  // of a copy; of a row
  constexpr int kRowsAtOnce = C::kThreads / kChunks;
  static_assert(C::kThreads % kChunks == 0);
  const int rows = static_cast<int>(min(int64_t{C::kTokens}, params.m - first_row));
  const int chunk = threadIdx.x % kChunks, first = threadIdx.x / kChunks;
  if (chunk >= (end - begin) * (W::kStepK / kNumbers)) return;
  const int64_t k = static_cast<int64_t>(begin) * W::kStepK + chunk * kNumbers;
  const int bytes = k < params.k ? 16 : 0;  // K is a multiple of kNumbers
  const char* from = tokens + (first_row + first) * stride + (bytes > 0 ? k * W::kTokenBytes : 0);
  char* to = stage + first * C::kPitch + chunk * 16;
  for (int row = first; row < rows; row += kRowsAtOnce) {
    copy_async<16>(to, from, bytes);
    from += kRowsAtOnce * stride;
    to += kRowsAtOnce * C::kPitch;
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks)
    few_tokens_kernel(const __grid_constant__ typename C::Weight::Params params,
                      const __grid_constant__ Splits splits) {
  using W = typename C::Weight;
  using Sum = typename W::Sum;
  extern __shared__ __align__(16) char shared[];
  release_successors();
  const int warp = threadIdx.x / 32;
  const int column_warp = warp % C::kColumnWarps, depth_warp = warp / C::kColumnWarps;
  const int rank = blockIdx.x;
  const int64_t block_column = static_cast<int64_t>(blockIdx.y) * C::kColumns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.z) * C::kTokens;
  const int begin = rank * splits.least + min(rank, splits.longer);
  const int count = splits.least + (rank < splits.longer ? 1 : 0);
  const int end = begin + count;

  const int rows = static_cast<int>(min(int64_t{C::kTokens}, params.m - first_row));
  __shared__ Barrier received;
  const Merge<C> merge(splits.count, rank, rows);
  merge.start(received);
  __syncwarp();
  merge.arrive();
  W::prefetch(params, block_column, C::kColumns, begin, end);
  W weight(params, block_column, column_warp, begin + depth_warp, C::kDepthWarps);
  wait_for_predecessor();
  W::template stage_tokens<C>(params, shared, first_row, begin, end);
  commit_copies();

  weight.start();
  const int mine = weight.has_columns() ? (count - depth_warp + C::kDepthWarps - 1) / C::kDepthWarps : 0;
  typename W::Step steps[C::kAhead];
#pragma unroll
  for (int i = 0; i < C::kAhead; ++i) {
    if (i < mine) weight.load(steps[i]);
  }
  Sum sums[W::kColumnBlocks][C::kTokenTiles][4] = {};
  const int stages = (count + C::kStageSteps - 1) / C::kStageSteps;
  for (int stage = 0; stage < stages; ++stage) {
    wait_for_copies<0>();
    __syncthreads();  // all see this stage's tokens and are done with the stage before
    if (stage + 1 < stages) {
      W::template stage_tokens<C>(params, shared + (stage + 1) % 2 * C::kStageBytes, first_row,
                                  begin + (stage + 1) * C::kStageSteps, end);
      commit_copies();
    }
    const char* const tokens = shared + stage % 2 * C::kStageBytes + depth_warp * W::kStepK * W::kTokenBytes;
    for (int turn = 0; turn < C::kTurns && stage * C::kTurns + turn < mine; turn += C::kAhead) {
#pragma unroll
      for (int ahead = 0; ahead < C::kAhead; ++ahead) {
        const int i = stage * C::kTurns + turn + ahead;
        if (i >= mine) break;
        weight.template add<C::kTokenTiles>(
            steps[ahead], tokens + (turn + ahead) * C::kDepthWarps * W::kStepK * W::kTokenBytes, C::kPitch, sums);
        if (i + C::kAhead < mine) weight.load(steps[ahead]);
      }
    }
  }

  __syncthreads();  // no stage is in use
  merge.leave(shared, sums, column_warp, depth_warp);
  __syncthreads();
  merge.finish(params, shared, shared + C::kSharedBytes - C::kReceivedBytes, received, block_column, first_row);
}

// Splits of K, of which each warp has a step or more, so that the multiprocessor with the most to do has the least. The
// fewer blocks the better: the next kernel's then find room beside them.
template <class C>
int num_splits(int64_t tiles, int64_t steps) {
  constexpr int64_t kMultiprocessors = 132;
  const int64_t most = std::clamp<int64_t>(steps / C::kDepthWarps, 1, kMostSplits);
  int best = 1;
  double least = 0.0;
  for (int splits = 1; splits <= most; ++splits) {
    constexpr double kMerge = 0.02;  // what a further split costs, as a share of all
    const int64_t blocks = tiles * splits, waves = (blocks + kMultiprocessors - 1) / kMultiprocessors;
    const double cost = static_cast<double>(waves) / static_cast<double>(blocks) * kMultiprocessors + kMerge * splits +
                        (waves > 1 ? 0.2 : 0.0);
    if (splits == 1 || cost < least) {
      best = splits;
      least = cost;
    }
  }
  return best;
}

// The grid's limit along y and z, and the columns that it leaves to tiles of 128 or more.
inline constexpr int64_t kMostTiles = std::min(kMostGridY, kMostGridZ), kMostColumns = kMostTiles * 128;

// Rows and columns are at most kMostTiles tiles each.
template <class C>
Status multiply(const char* operator_name, const typename C::Weight::Params& params, Stream stream) {
  using W = typename C::Weight;
  const int64_t row_blocks = (params.m + C::kTokens - 1) / C::kTokens;
  const int64_t column_tiles = (params.n + C::kColumns - 1) / C::kColumns;
  const int64_t steps = (params.k + W::kStepK - 1) / W::kStepK;
  const int splits = num_splits<C>(column_tiles * row_blocks, steps);
  const auto kernel = few_tokens_kernel<C>;
  SGL_RETURN_IF_ERROR(allow_shared_memory(operator_name, kernel, C::kSharedBytes));
  const LaunchShape shape = {
      .grid = dim3(splits, static_cast<unsigned>(column_tiles), static_cast<unsigned>(row_blocks)),
      .block = C::kThreads,
      .shared_bytes = C::kSharedBytes,
      .pdl = true,
      .cluster = splits};
  return launch(
      operator_name, kernel, shape, stream, params,
      Splits{.count = splits, .least = static_cast<int>(steps / splits), .longer = static_cast<int>(steps % splits)});
}

// The product with tiles as wide as the tokens fill, up to 32 of them.
template <class Weight>
Status multiply_few(const char* operator_name, const typename Weight::Params& params, Stream stream) {
  if (params.m <= 8) return multiply<Config<Weight, 1>>(operator_name, params, stream);
  if (params.m <= 16) return multiply<Config<Weight, 2>>(operator_name, params, stream);
  return multiply<Config<Weight, 4>>(operator_name, params, stream);
}

// What a block asks for before its turn: as much as all of them together keep in the L2 cache.
inline constexpr int kPrefetchBytes = 128 * 1024;

}  // namespace sgl_kernel::SGL_TARGET::few_tokens
