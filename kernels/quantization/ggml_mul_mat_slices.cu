// ggml_mul_mat_a8 for few tokens, or few rows; on Hopper for small products (ggml_mul_mat_sm90a.cu says which).
//
// A block computes some rows of W, as many as share them out evenly over the multiprocessors, for kTokens tokens, whose
// bytes it keeps in shared memory (a chunk of k at a time). Its work is cut into tasks of 8 rows by a slice of 256
// elements. A warp takes one task at a time on its own: it copies the rows' blocks to shared memory a task ahead,
// decodes from there what each lane holds of an operand of the tensor cores, and multiplies. The integer sums of a
// group of 32 become floats and are scaled at once, since every group has scales of its own. The block then adds the
// tasks' sums.
//
// Bound by the latency of a task's instructions. H200, 2026-11-23, µs with the quantization of X, weights out of
// memory, in a CUDA graph:
//   tokens                16     32     64
//   Q4_0, 9216 x 4096   25.9   33.8   62.4
//   Q8_0, 9216 x 4096   31.4   44.7   82.6
//   Q4_K, 9216 x 4096   28.3   38.1   71.1
//   Q6_K, 9216 x 4096   30.6   44.4   82.6
//   Q4_1, 576 x 1536     5.5           7.2
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/ggml_mul_mat.cuh"
#include "kernels/quantization/ggml_slices.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kQuantizeThreads = 256;

// Four lanes a group. Bound by memory.
__global__ void __launch_bounds__(kQuantizeThreads)
    ggml_quantize_activations_kernel(Workspace workspace, Activations X, int64_t num_tokens, int num_groups) {
  release_successors();
  wait_for_predecessor();
  const int64_t task = int64_t{blockIdx.x} * kQuantizeThreads + threadIdx.x;
  const int64_t slot = task / 4, token = slot / num_groups;
  const int group = static_cast<int>(slot - token * num_groups), quarter = static_cast<int>(task % 4);
  const bool present = token < num_tokens;
  float x[8] = {};
  if (present) load_eight(X, token, int64_t{group} * kGroupSize + quarter * 8, x);
  ActivationScale scale;
  const uint2 bytes = quantize_group(x, scale);
  if (!present) return;
  *reinterpret_cast<uint2*>(workspace.quants + slot * kGroupSize + quarter * 8) = bytes;
  if (quarter == 0) workspace.scales[slot] = scale;
}

constexpr int kMostWarps = 24;  // of a block
constexpr int kMostTiles = 16;  // of a block, of 8 rows
constexpr int kStages = 2;      // tasks that a warp has copies of, or on their way
constexpr int kCacheLine = 128;

struct SliceParams : MatMulParams {
  int64_t row_blocks;
  int block_tiles;   // of 8 rows
  int chunk_slices;  // of X in shared memory at a time
};

// The sums of a task, or of all slices.
template <int kTokens>
using TileSums = float[kTokens][kRowTileRows];

// Where a block has what in shared memory.
template <class Format, int kTokens>
struct BlockBuffers {
  WarpBuffers<Format, kStages>* warps;  // [num_warps]
  TileSums<kTokens>* sums;              // [2][num_warps]: of the tasks of this round and of the one before
  TileSums<kTokens>* totals;            // [block_tiles]
  uint8_t* activations;                 // [kTokens][pitch]
  ActivationScale* scales;              // [chunk_slices * kSliceGroups][kTokens]
  int pitch;

  static constexpr int bytes(int num_warps, int block_tiles, int chunk_slices) {
    return num_warps * static_cast<int>(sizeof(WarpBuffers<Format, kStages>)) +
           (2 * num_warps + block_tiles) * static_cast<int>(sizeof(TileSums<kTokens>)) +
           kTokens * (kPad + chunk_slices * (kSliceSize + kSliceGroups * static_cast<int>(sizeof(ActivationScale))));
  }

  __device__ __forceinline__ BlockBuffers(void* shared, int num_warps, int block_tiles, int chunk_slices)
      : warps(static_cast<WarpBuffers<Format, kStages>*>(shared)),
        sums(reinterpret_cast<TileSums<kTokens>*>(warps + num_warps)),
        totals(sums + 2 * num_warps),
        activations(reinterpret_cast<uint8_t*>(totals + block_tiles)),
        scales(reinterpret_cast<ActivationScale*>(activations + kTokens * (chunk_slices * kSliceSize + kPad))),
        pitch(chunk_slices * kSliceSize + kPad) {}
};

// Where a warp is in the block's work. Some slices of all tiles are a chunk; the warps take its tasks in turn, slice by
// slice of a tile, a task each in a round.
struct TaskPosition {
  int chunk, slices;  // the chunk's first slice, and how many it has; none behind the last chunk
  int first;          // task of the round, in the chunk
  int tile, slice;    // of this warp's task; behind the last tile: it has none in this round

  __device__ __forceinline__ void start_chunk(int chunk_, int num_slices, int chunk_slices, int warp) {
    chunk = chunk_;
    slices = max(0, min(chunk_slices, num_slices - chunk));
    first = tile = slice = 0;
    skip(warp);
  }
  __device__ __forceinline__ void skip(int tasks) {
    slice += tasks;
    while (slice >= slices && slices > 0) {
      slice -= slices;
      ++tile;
    }
  }
};

template <class Format, int kTokens>
struct Multiplier {
  const SliceParams& params;
  const BlockBuffers<Format, kTokens> block;
  const int lane, warp, num_warps;
  const int64_t first_row, first_token, row_bytes;
  const int num_rows, tiles, num_slices;
  const uint8_t* const W;  // the block's first row

  __device__ __forceinline__ Multiplier(const SliceParams& params, void* shared)
      : params(params),
        block(shared, blockDim.x / kWarpSize, params.block_tiles, params.chunk_slices),
        lane(threadIdx.x % kWarpSize),
        warp(threadIdx.x / kWarpSize),
        num_warps(blockDim.x / kWarpSize),
        first_row(blockIdx.x % params.row_blocks * params.block_tiles * kRowTileRows),
        first_token(blockIdx.x / params.row_blocks * kTokens),
        row_bytes(int64_t{params.num_groups / Format::kGroupsPerBlock} * sizeof(typename Format::Block)),
        num_rows(static_cast<int>(min(int64_t{params.block_tiles} * kRowTileRows, params.rows - first_row))),
        tiles((num_rows + kRowTileRows - 1) / kRowTileRows),
        num_slices((params.num_groups + kSliceGroups - 1) / kSliceGroups),
        W(params.W + first_row * row_bytes) {}

  // Asks the block's rows into the L2 cache: a hint and no read, allowed before the predecessor has ended.
  __device__ __forceinline__ void prefetch() const {
    constexpr int64_t kMostBytes = 256 << 10;
    if (first_token > 0) return;
    const int64_t bytes = min(num_rows * row_bytes, kMostBytes);
#pragma unroll 1
    for (int64_t at = threadIdx.x * kCacheLine; at < bytes; at += blockDim.x * kCacheLine) prefetch_to_l2(W + at);
  }

  // Starts to copy a chunk of X; zeros where there is no such token or group.
  __device__ __forceinline__ void copy_activations(int first_slice, int slices) const {
    const int first_group = first_slice * kSliceGroups, groups = slices * kSliceGroups;
    for (int token = warp; token < kTokens; token += num_warps) {
      const bool has_token = first_token + token < params.num_tokens;
      const int64_t at = has_token ? (first_token + token) * params.num_groups + first_group : 0;
      const uint8_t* quants = params.X.quants + at * kGroupSize;
      for (int piece = lane; piece < groups * 2; piece += kWarpSize) {
        const bool present = has_token && first_group + piece / 2 < params.num_groups;
        copy_async<16>(block.activations + token * block.pitch + piece * 16,
                       present ? quants + piece * 16 : params.X.quants, present ? 16 : 0);
      }
      for (int group = lane; group < groups; group += kWarpSize) {
        const bool present = has_token && first_group + group < params.num_groups;
        copy_async<8>(&block.scales[group * kTokens + token], params.X.scales + (present ? at + group : 0),
                      present ? 8 : 0);
      }
    }
  }

  __device__ __forceinline__ RowTile<Format> tile_of(int tile) const {
    const int64_t row0 = first_row + tile * kRowTileRows;
    return {.first = W + tile * kRowTileRows * row_bytes,
            .row_bytes = row_bytes,
            .num_rows = min(kRowTileRows, num_rows - tile * kRowTileRows),
            .inside = row0 > 0 && row0 + kRowTileRows < params.rows};
  }

  // Starts to copy the blocks of a task.
  __device__ __forceinline__ void copy_task(int tile, int slice, int stage) const {
    tile_of(tile).copy(block.warps[warp].staged[stage], slice, params.W, params.W + params.rows * row_bytes);
  }

  __device__ __forceinline__ void multiply_task(const TaskPosition& at, int stage, TileSums<kTokens>& sums) const {
    constexpr int kTokenTiles = kTokens / 16;
    WarpBuffers<Format, kStages>& buffers = block.warps[warp];
    const RowTile<Format> tile = tile_of(at.tile);
    const int slice = at.chunk + at.slice, g = lane / 4, t = lane % 4;
    tile.store_scales(buffers, stage, slice, params.num_groups);
    __syncwarp();
    float accumulators[1][kTokenTiles][4] = {};
    add_slice<Format, kTokens, 1>({tile.blocks_of(buffers.staged[stage], g, slice)}, &buffers,
                                  block.activations + at.slice * kSliceSize, block.pitch,
                                  block.scales + at.slice * kSliceGroups * kTokens, kTokenTiles, accumulators);
#pragma unroll
    for (int m = 0; m < kTokenTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        *reinterpret_cast<float2*>(&sums[m * 16 + h * 8 + g][2 * t]) =
            make_float2(accumulators[0][m][2 * h], accumulators[0][m][2 * h + 1]);
      }
    }
  }

  // Adds the sums of a round's tasks to their tiles' totals.
  __device__ __forceinline__ void add_round(const TaskPosition& at, const TileSums<kTokens>* sums) const {
    constexpr int kSize = kTokens * kRowTileRows;
    const int behind = min(at.first + num_warps, at.slices * tiles);
    const int first_tile = at.first / at.slices, behind_tile = (behind - 1) / at.slices + 1;
    for (int i = threadIdx.x; i < (behind_tile - first_tile) * kSize; i += blockDim.x) {
      const int tile = first_tile + i / kSize, element = i % kSize;
      const int begin = max(tile * at.slices, at.first), end = min((tile + 1) * at.slices, behind);
      float* total = &block.totals[tile][0][0] + element;
      float sum = *total;
#pragma unroll 4
      for (int task = begin; task < end; ++task) sum += (&sums[task - at.first][0][0])[element];
      *total = sum;
    }
  }

  __device__ __forceinline__ void store_totals() const {
    for (int token = warp; token < kTokens && first_token + token < params.num_tokens; token += num_warps) {
      for (int row = lane; row < num_rows; row += kWarpSize) {
        store_element(params.result, params.result_dtype,
                      (first_token + token) * params.result_stride + first_row + row,
                      block.totals[row / kRowTileRows][token][row % kRowTileRows]);
      }
    }
  }

  __device__ __forceinline__ TaskPosition start() const {
    TaskPosition at;
    at.start_chunk(0, num_slices, params.chunk_slices, warp);
    return at;
  }

  // To the next round.
  __device__ __forceinline__ void advance(TaskPosition& at) const {
    at.first += num_warps;
    if (at.first < at.slices * tiles) {
      at.skip(num_warps);
    } else {
      at.start_chunk(at.chunk + params.chunk_slices, num_slices, params.chunk_slices, warp);
    }
  }

  __device__ __forceinline__ void run() const {
    release_successors();
    prefetch();
    for (int i = threadIdx.x; i < tiles * kTokens * kRowTileRows; i += blockDim.x) (&block.totals[0][0][0])[i] = 0.0f;
    wait_for_predecessor();

    TaskPosition ahead = start();  // kStages - 1 rounds
    int ahead_stage = 0;
    const auto copy_next = [&] {
      if (ahead.chunk < num_slices) {
        if (ahead.tile < tiles) copy_task(ahead.tile, ahead.chunk + ahead.slice, ahead_stage);
        advance(ahead);
      }
      commit_copies();
      ahead_stage = ahead_stage + 1 == kStages ? 0 : ahead_stage + 1;
    };
#pragma unroll 1
    for (int i = 0; i + 1 < kStages; ++i) copy_next();

    int stage = 0, parity = 0;
#pragma unroll 1
    for (TaskPosition at = start(); at.chunk < num_slices; advance(at)) {
      if (at.first == 0) {
        copy_activations(at.chunk, at.slices);
        commit_copies();
        wait_for_copies<0>();
        __syncthreads();
      }
      copy_next();
      wait_for_copies<kStages - 1>();
      __syncwarp();
      // What was here, the sums of the round before last, was read before the last barrier.
      TileSums<kTokens>* const sums = block.sums + parity * num_warps;
      if (at.tile < tiles) multiply_task(at, stage, sums[warp]);
      __syncthreads();
      add_round(at, sums);
      stage = stage + 1 == kStages ? 0 : stage + 1;
      parity ^= 1;
    }
    __syncthreads();
    store_totals();
  }
};

template <class Format, int kTokens>
__global__ void __launch_bounds__(kMostWarps* kWarpSize, 1)
    ggml_mul_mat_kernel(const __grid_constant__ SliceParams params) {
  extern __shared__ uint4 shared[];
  Multiplier<Format, kTokens>(params, shared).run();
}

template <class Format, int kTokens>
Status launch_tokens(const MatMulParams& call, Stream stream) {
  SliceParams params = {call};
  using Buffers = BlockBuffers<Format, kTokens>;
  const auto kernel = ggml_mul_mat_kernel<Format, kTokens>;
  const int64_t token_tiles = (params.num_tokens + kTokens - 1) / kTokens;
  const int64_t row_tiles = (params.rows + kRowTileRows - 1) / kRowTileRows;
  // As few blocks for each multiprocessor as kMostTiles allows, and the tiles shared out evenly over them.
  const int64_t least_blocks = (row_tiles + kMostTiles - 1) / kMostTiles * token_tiles;
  const int64_t rounds = (least_blocks + num_sms() - 1) / num_sms();
  const int64_t most_row_blocks = std::max<int64_t>(1, num_sms() * rounds / token_tiles);
  params.block_tiles = static_cast<int>((row_tiles + most_row_blocks - 1) / most_row_blocks);
  params.row_blocks = (row_tiles + params.block_tiles - 1) / params.block_tiles;
  const int num_slices = (params.num_groups + kSliceGroups - 1) / kSliceGroups;
  int warps = kMostWarps;
  const int most_bytes = max_shared_memory();
  while (warps > 4 && Buffers::bytes(warps, params.block_tiles, 1) > most_bytes) warps -= 4;
  const int one_more = Buffers::bytes(0, 0, 1) - Buffers::bytes(0, 0, 0);
  const int most_slices = (most_bytes - Buffers::bytes(warps, params.block_tiles, 0)) / one_more;
  // Chunks of one size.
  const int chunks = (num_slices + most_slices - 1) / most_slices;
  params.chunk_slices = chunks > 0 ? (num_slices + chunks - 1) / chunks : 1;
  const int shared_bytes = Buffers::bytes(warps, params.block_tiles, params.chunk_slices);
  SGL_RETURN_IF_ERROR(allow_shared_memory("ggml_mul_mat_a8", kernel, shared_bytes));
  return launch("ggml_mul_mat_a8", kernel,
                {.grid = static_cast<unsigned>(params.row_blocks * token_tiles),
                 .block = static_cast<unsigned>(warps * kWarpSize),
                 .shared_bytes = static_cast<size_t>(shared_bytes),
                 .pdl = true},
                stream, params);
}

template <class Format>
Status mul_mat(const MatMulParams& params, Stream stream) {
  return params.num_tokens <= 16 ? launch_tokens<Format, 16>(params, stream)
                                 : launch_tokens<Format, 32>(params, stream);
}

}  // namespace

Status ggml_prepare_mul_mat(const char* operator_name, MatMulParams& params, TensorView result, TensorView workspace,
                            TensorView W, TensorView X, int64_t row, Stream stream) {
  params.result = result.data();
  params.result_stride = result.stride(0);
  params.result_dtype = result.dtype();
  params.W = W.data<const uint8_t>();
  params.rows = row;
  params.num_tokens = X.size(0);
  params.num_groups = static_cast<int>(X.size(1) / kGroupSize);
  params.X.quants = workspace.data<uint8_t>();
  params.X.scales = reinterpret_cast<ActivationScale*>(workspace.data<uint8_t>() + X.num_elements());
  if (params.num_groups > 0) {
    const int64_t lanes = params.num_tokens * params.num_groups * 4;
    SGL_RETURN_IF_ERROR(launch(operator_name, ggml_quantize_activations_kernel,
                               {.grid = static_cast<unsigned>((lanes + kQuantizeThreads - 1) / kQuantizeThreads),
                                .block = kQuantizeThreads,
                                .pdl = true},
                               stream, params.X, activations_of(X), params.num_tokens, params.num_groups));
  }
  return OkStatus();
}

Status ggml_mul_mat_slices(const MatMulParams& params, int64_t type, Stream stream) {
  SGL_SWITCH_GGML_TYPE(type, F, return mul_mat<F>(params, stream));
  return OkStatus();  // not reached: the type was checked
}

}  // namespace sgl_kernel::SGL_TARGET
