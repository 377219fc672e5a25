// ggml_moe_a8, and ggml_moe_a8_vec up to its kernel (ggml_moe_vec.cu): the quantizing kernel of ggml_mul_mat_slices.cu,
// then one that multiplies.
//
// Neighbouring blocks of pairs that have one expert are a tile of up to kTokens pairs; tiles end at multiples of 32
// blocks, too, so that a warp finds them by one look at a window of that many experts. A thread block has every
// kTilesAtOnce-th of a window's tiles (y), and 16 rows for each of its warps (x). In each step over k its warps share a
// slice of the pairs' tokens, and each multiplies its own rows by it (ggml_slices.cuh); what the next step needs is
// copied meanwhile. Bound by the instructions of a step, for many pairs an expert by those that scale the sums.
//
// Measured on an H200, 2026-11-23, weights out of memory, 3072 x 4096, without the quantization of X, in µs; the
// choices are random:
//   tokens, experts of each, experts     64, 8, 128   256, 8, 128   1024, 8, 128   1024, 2, 8
//   Q4_K                                        599           756           1711          390
//   Q8_0                                        589           727           1921          440
// By tools/bench, with the quantization, 256 tokens, 16 pairs for each of 128 experts: Q4_K 657, sgl-kernel 0.4.2 2590.
//
// A pair's sum adds the groups of k in their order, so that its bits do not depend on the other pairs.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/ggml_moe.cuh"
#include "kernels/quantization/ggml_slices.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kWindow = kWarpSize;  // blocks of pairs
constexpr int kPitch = kSliceSize + kPad;

constexpr int kBlocksAtOnce = 2;  // a multiprocessor's

template <int kTokens>
constexpr int kTilesAtOnce = kWindow * kGgmlMoeBlock / kTokens;  // as many as a window has at least

template <class Format, int kTokens_>
struct Shape {
  static constexpr int kTokens = kTokens_, kWarps = 8, kThreads = kWarps * kWarpSize;
  static constexpr int kRowTiles = 2;  // of a warp: they share what it loads of X
  static constexpr int kStages = 2;    // slices in shared memory
  static constexpr int kRows = kWarps * kRowTiles * kRowTileRows;

  struct Slice {  // of the tokens
    uint8_t quants[kTokens][kPitch];
    ActivationScale scales[kSliceGroups][kTokens];
  };
  struct Buffers {
    WarpBuffers<Format, kStages> warps[kWarps][kRowTiles];
    Slice slices[kStages];
    int pairs[kTokens];  // or -1
  };
};

// Some blocks of pairs.
struct Tile {
  int64_t first;
  int count;
};

// The tiles of a window of blocks that start at `window`, `num_blocks` of which count: a bit at the first of each.
template <int kTokens>
__device__ __forceinline__ uint32_t find_tiles(const int32_t* experts, int64_t window, int64_t num_blocks) {
  const int lane = threadIdx.x % kWarpSize;
  const bool counts = window + lane < num_blocks;
  const int expert = counts ? experts[window + lane] : 0;
  const int before = __shfl_up_sync(0xffffffff, expert, 1);
  const uint32_t runs = __ballot_sync(0xffffffff, counts && (lane == 0 || expert != before));
  const int start = kWarpSize - 1 - __clz(runs & ((2u << lane) - 1));  // of this block's run
  return __ballot_sync(0xffffffff, counts && (lane - start) % (kTokens / kGgmlMoeBlock) == 0);
}

// What a thread copies of each slice of the tokens: pieces of kBytes, kPieces of them a token's.
template <int kBytes, int kPieces, int kTokens, int kThreads>
struct TokenCopies {
  static constexpr int kCount = (kTokens * kPieces + kThreads - 1) / kThreads;
  const uint8_t* sources[kCount];  // in the first slice; null: there is no such pair

  // `data` has token_bytes a token.
  __device__ __forceinline__ TokenCopies(const int (&pairs)[kTokens], int top_k, const void* data,
                                         int64_t token_bytes) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int pair = token_of(i) < kTokens ? pairs[token_of(i)] : -1;
      const uint8_t* const token = static_cast<const uint8_t*>(data) + pair / top_k * token_bytes;
      sources[i] = pair < 0 ? nullptr : token + piece_of(i) * kBytes;
    }
  }
  static __device__ __forceinline__ int token_of(int i) { return (i * kThreads + threadIdx.x) / kPieces; }
  static __device__ __forceinline__ int piece_of(int i) { return (i * kThreads + threadIdx.x) % kPieces; }

  // `to`: where a token's piece goes. `present`: pieces that the slice has; zeros for the others.
  template <class To>
  __device__ __forceinline__ void start(int64_t offset, int present, const void* anywhere, const To& to) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (token_of(i) >= kTokens) break;
      const bool is_there = sources[i] != nullptr && piece_of(i) < present;
      copy_async<kBytes>(to(token_of(i), piece_of(i)), is_there ? sources[i] + offset : anywhere,
                         is_there ? kBytes : 0);
    }
  }
};

template <class Shape, class Format>
struct TileMultiplier {
  static constexpr int kTokens = Shape::kTokens, kStages = Shape::kStages, kTokenTiles = kTokens / 16;
  static constexpr int kRowTiles = Shape::kRowTiles;
  using Buffers = typename Shape::Buffers;

  const ExpertsParams& params;
  Buffers& buffers;
  const int lane, warp;

  // sums = the tile's tokens times the warp's rows.
  __device__ __forceinline__ void multiply(const RowTile<Format> (&rows)[kRowTiles], int token_tiles,
                                           float (&sums)[kRowTiles][kTokenTiles][4]) const {
    const uint8_t* const end = params.W + params.num_experts * params.rows * rows[0].row_bytes;
    const int num_slices = (params.num_groups + kSliceGroups - 1) / kSliceGroups;
    auto& mine = buffers.warps[warp];
    constexpr int kScaleBytes = sizeof(ActivationScale), kThreads = Shape::kThreads;
    const TokenCopies<16, kSliceSize / 16, kTokens, kThreads> quants(buffers.pairs, params.top_k, params.X.quants,
                                                                     int64_t{params.num_groups} * kGroupSize);
    const TokenCopies<kScaleBytes, kSliceGroups, kTokens, kThreads> scales(buffers.pairs, params.top_k, params.X.scales,
                                                                           int64_t{params.num_groups} * kScaleBytes);
    const auto copy = [&](int slice) {
      if (slice < num_slices) {
        const int stage = slice % kStages, groups = params.num_groups - slice * kSliceGroups;
        auto& to = buffers.slices[stage];
        quants.start(int64_t{slice} * kSliceSize, groups * (kGroupSize / 16), params.X.quants,
                     [&](int token, int piece) { return &to.quants[token][piece * 16]; });
        scales.start(int64_t{slice} * kSliceGroups * kScaleBytes, groups, params.X.scales,
                     [&](int token, int group) { return &to.scales[group][token]; });
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) rows[r].copy(mine[r].staged[stage], slice, params.W, end);
      }
      commit_copies();
    };
#pragma unroll 1
    for (int slice = 0; slice + 1 < kStages; ++slice) copy(slice);
#pragma unroll 1
    for (int slice = 0; slice < num_slices; ++slice) {
      const int stage = slice % kStages;
      wait_for_copies<kStages - 2>();
      __syncthreads();  // and every warp is done with the slice before, in whose place the next copies go
      copy(slice + kStages - 1);
      const typename Format::Block* blocks[kRowTiles];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        rows[r].store_scales(mine[r], stage, slice, params.num_groups);
        blocks[r] = rows[r].blocks_of(mine[r].staged[stage], lane / 4, slice);
      }
      __syncwarp();
      const auto& x = buffers.slices[stage];
      add_slice<Format, kTokens>(blocks, mine, &x.quants[0][0], kPitch, &x.scales[0][0], token_tiles, sums);
    }
  }

  __device__ __forceinline__ void store(int64_t row0, const float (&sums)[kRowTiles][kTokenTiles][4]) const {
#pragma unroll
    for (int m = 0; m < kTokenTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int pair = buffers.pairs[m * 16 + h * 8 + lane / 4];
        if (pair < 0) continue;
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int64_t row = row0 + r * kRowTileRows + lane % 4 * 2 + c;
            if (row < params.rows) {
              store_element(params.result, params.result_dtype, pair * params.result_stride + row,
                            sums[r][m][2 * h + c]);
            }
          }
        }
      }
    }
  }

  __device__ __forceinline__ void run(const Tile& tile, int64_t num_pairs) const {
    __syncthreads();  // the tile before is done
    const int64_t first = tile.first * kGgmlMoeBlock, real_pairs = params.num_tokens * params.top_k;
    for (int i = threadIdx.x; i < kTokens; i += Shape::kThreads) {
      const bool counts = i < tile.count * kGgmlMoeBlock && first + i < num_pairs;
      const int pair = counts ? params.pairs[first + i] : -1;
      buffers.pairs[i] = pair < real_pairs ? max(pair, -1) : -1;
    }
    __syncthreads();
    const int64_t expert = params.experts[tile.first];
    const bool has_expert = expert >= 0 && expert < params.num_experts;
    const int token_tiles = (tile.count * kGgmlMoeBlock + 15) / 16;
    const int64_t row0 = int64_t{blockIdx.x} * Shape::kRows + warp * kRowTiles * kRowTileRows;
    const int64_t row_bytes = int64_t{params.num_groups / Format::kGroupsPerBlock} * sizeof(typename Format::Block);
    RowTile<Format> rows[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const int64_t of_expert = row0 + r * kRowTileRows, row = (has_expert ? expert : 0) * params.rows + of_expert;
      rows[r] = {.first = params.W + row * row_bytes,
                 .row_bytes = row_bytes,
                 .num_rows = static_cast<int>(max(int64_t{0}, min(int64_t{kRowTileRows}, params.rows - of_expert))),
                 .inside = row > 0 && row + kRowTileRows < params.num_experts * params.rows};
    }
    float sums[kRowTiles][kTokenTiles][4] = {};
    if (has_expert) multiply(rows, token_tiles, sums);
    store(row0, sums);
  }
};

template <class Shape, class Format>
__global__ void __launch_bounds__(Shape::kThreads, kBlocksAtOnce)
    ggml_multiply_sorted_pairs_kernel(const __grid_constant__ ExpertsParams params) {
  extern __shared__ uint4 shared[];
  release_successors();
  wait_for_predecessor();
  const int64_t num_pairs = min(int64_t{*params.num_pairs}, params.most_pairs);
  const int64_t num_blocks = (num_pairs + kGgmlMoeBlock - 1) / kGgmlMoeBlock;
  const TileMultiplier<Shape, Format> multiplier = {params, *reinterpret_cast<typename Shape::Buffers*>(shared),
                                                    static_cast<int>(threadIdx.x % kWarpSize),
                                                    static_cast<int>(threadIdx.x / kWarpSize)};
  constexpr int kAtOnce = kTilesAtOnce<Shape::kTokens>;
  for (int64_t task = blockIdx.y; task / kAtOnce * kWindow < num_blocks; task += gridDim.y) {
    const int64_t window = task / kAtOnce * kWindow;
    uint32_t tiles = find_tiles<Shape::kTokens>(params.experts, window, num_blocks);
    const int behind = static_cast<int>(min(int64_t{kWindow}, num_blocks - window));
    for (int i = 0; tiles != 0; ++i) {
      const int first = __ffs(tiles) - 1;
      tiles &= tiles - 1;
      const int next = tiles != 0 ? __ffs(tiles) - 1 : behind;
      if (i % kAtOnce == task % kAtOnce) multiplier.run({window + first, next - first}, num_pairs);
    }
  }
}

template <class Format, int kTokens>
Status launch_tokens(const ExpertsParams& params, Stream stream) {
  using S = Shape<Format, kTokens>;
  const int64_t windows = (params.most_pairs + kWindow * kGgmlMoeBlock - 1) / (kWindow * kGgmlMoeBlock);
  const auto kernel = ggml_multiply_sorted_pairs_kernel<S, Format>;
  const int shared_bytes = sizeof(typename S::Buffers);
  SGL_RETURN_IF_ERROR(allow_shared_memory("ggml_moe_a8", kernel, shared_bytes));
  return launch("ggml_moe_a8", kernel,
                {.grid = dim3(static_cast<unsigned>((params.rows + S::kRows - 1) / S::kRows),
                              static_cast<unsigned>(std::min(windows * kTilesAtOnce<kTokens>, kMostGridY))),
                 .block = S::kThreads,
                 .shared_bytes = shared_bytes,
                 .pdl = true},
                stream, params);
}

template <class Format>
Status multiply(const ExpertsParams& params, Stream stream) {
  // By the pairs of an expert, were they shared out evenly. A tile that is not full costs less than two.
  const int64_t pairs = params.num_tokens * params.top_k / std::max<int64_t>(1, params.num_experts);
  constexpr int64_t kFew = 12, kSome = 24;
  if (pairs < kFew) return launch_tokens<Format, 16>(params, stream);
  constexpr int kWideBytes = sizeof(typename Shape<Format, 64>::Buffers);
  if (pairs < kSome || kBlocksAtOnce * kWideBytes > max_shared_memory()) {
    return launch_tokens<Format, 32>(params, stream);
  }
  return launch_tokens<Format, 64>(params, stream);
}

}  // namespace

Status ggml_multiply_experts(const ExpertsCall& call, Stream stream) {
  ExpertsParams params = {};
  SGL_RETURN_IF_ERROR(ggml_prepare_mul_mat(call.operator_name, params, call.result, call.workspace, call.W, call.X,
                                           call.W.size(1), stream));
  params.pairs = call.pairs;
  params.num_pairs = call.num_pairs;
  params.experts = call.experts;
  params.most_pairs = call.most_pairs;
  params.num_experts = call.W.size(0);
  params.top_k = static_cast<int>(call.top_k);
  if (call.block == 1) return ggml_multiply_pairs(params, call.type, stream);
  SGL_SWITCH_GGML_TYPE(call.type, F, return multiply<F>(params, stream));
  return OkStatus();  // not reached: the type was checked
}

}  // namespace sgl_kernel::SGL_TARGET
