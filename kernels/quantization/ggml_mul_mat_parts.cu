// ggml_mul_mat_a8 for few tokens, or few rows.
//
// A block computes some tiles of 8 rows of W for kTokens tokens, whose bytes it keeps in shared memory (a chunk of k at
// a time). A warp has a tile and a part of k to itself: it copies the blocks of 256 elements of its rows to shared
// memory, a slice ahead, decodes from there what each lane holds of an operand of the tensor cores, and multiplies. The
// integer sums of a group of 32 become floats and are scaled at once, since every group has scales of its own. At last
// the block adds the parts.
//
// Bound by the instructions of the decoding and the scaling.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/mma_int8.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/quantization/ggml_decode.cuh"
#include "kernels/quantization/ggml_mul_mat.cuh"
#include "kernels/quantization/ggml_stage.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kSliceSize = kSliceGroups * kGroupSize;  // elements
constexpr int kStages = 2;                             // slices that a warp has copies of, or on their way
constexpr int kCacheLine = 128;
constexpr int kPad = 16;  // bytes behind a token's: the 8 that a matrix load reads at once are in different banks

struct PartParams : MatMulParams {
  int64_t row_blocks;
  int block_tiles;
  int chunk_slices;  // of each part, of X in shared memory at a time
};

// The bytes of a slice of a row.
template <class Format>
constexpr int kRunBytes = kSliceGroups / Format::kGroupsPerBlock * static_cast<int>(sizeof(typename Format::Block));

// What a warp has in shared memory.
template <class Format>
struct alignas(16) WarpBuffers {
  uint8_t staged[kStages][kTileRows][staged_bytes(kRunBytes<Format>)];
  float scales[kSliceGroups][Format::kScales][kTileRows];
  float offsets[Format::kHasOffset ? kSliceGroups : 1][Format::kScales][kTileRows];
};

// The sums of a warp, which in the end take the place of what the warps had.
template <int kTokens>
using TileSums = float[kTokens][kTileRows];

// Where a block has what in shared memory.
template <class Format, int kTokens>
struct BlockBuffers {
  static_assert(sizeof(TileSums<kTokens>) <= sizeof(WarpBuffers<Format>));
  WarpBuffers<Format>* warps;  // [num_warps]
  uint8_t* activations;        // [kTokens][pitch]: the slices of each part
  ActivationScale* scales;     // [num_parts * chunk_slices * kSliceGroups][kTokens]
  int pitch;

  static constexpr int bytes(int num_warps, int slices) {
    return num_warps * static_cast<int>(sizeof(WarpBuffers<Format>)) +
           kTokens * (kPad + slices * (kSliceSize + kSliceGroups * static_cast<int>(sizeof(ActivationScale))));
  }

  __device__ __forceinline__ BlockBuffers(void* shared, int num_warps, int slices)
      : warps(static_cast<WarpBuffers<Format>*>(shared)),
        activations(reinterpret_cast<uint8_t*>(warps + num_warps)),
        scales(reinterpret_cast<ActivationScale*>(activations + kTokens * (slices * kSliceSize + kPad))),
        pitch(slices * kSliceSize + kPad) {}
};

// Adds the products of a slice: `blocks` are those of row lane / 4, `activations` and `x_scales` are the slice's.
//
// The products are [16 tokens, 8 rows]: lane 4g + t has tokens g and g + 8 of each tile, rows 2t and 2t + 1. Of the
// weights it holds bytes 4t .. 4t + 3 of both halves of row g's groups.
template <class Format, int kTokens>
__device__ __forceinline__ void multiply_slice(const typename Format::Block* blocks, const WarpBuffers<Format>& buffers,
                                               const uint8_t* activations, int pitch, const ActivationScale* x_scales,
                                               float (&accumulators)[kTokens / 16][4]) {
  constexpr int kTokenTiles = kTokens / 16;
  const int lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
  const uint8_t* const x = activations + lane % 16 * pitch + lane / 16 * 16;
#pragma unroll
  for (int group = 0; group < kSliceGroups; ++group) {
    const uint2 b = Format::words(blocks[group / Format::kGroupsPerBlock], group % Format::kGroupsPerBlock, t);
    RowScale<Format> rows[2];
#pragma unroll
    for (int s = 0; s < Format::kScales; ++s) {
      const float2 scale = *reinterpret_cast<const float2*>(&buffers.scales[group][s][2 * t]);
      rows[0].scale[s] = scale.x;
      rows[1].scale[s] = scale.y;
      if constexpr (Format::kHasOffset) {
        const float2 offset = *reinterpret_cast<const float2*>(&buffers.offsets[group][s][2 * t]);
        rows[0].offset[s] = offset.x;
        rows[1].offset[s] = offset.y;
      }
    }
#pragma unroll
    for (RowScale<Format>& row : rows) row.set_base();
#pragma unroll
    for (int m = 0; m < kTokenTiles; ++m) {
      // Tiles: tokens 0..7, tokens 8..15, and both again 16 bytes further on.
      uint32_t a[4];
      load_matrices(a, x + m * 16 * pitch + group * kGroupSize);
      int dots[2][4];
      if constexpr (Format::kScales == 1) {
        mma_16x8x32(dots[0], a[0], a[1], a[2], a[3], b.x, b.y, kFloatBaseBits);
      } else {
        mma_16x8x16(dots[0], a[0], a[1], b.x, kFloatBaseBits);
        mma_16x8x16(dots[1], a[2], a[3], b.y, kFloatBaseBits);
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const ActivationScale& x_scale = x_scales[group * kTokens + m * 16 + c / 2 * 8 + g];
        float x_sums[2];
        sums_of<Format>(x_scale, x_sums);
        const int dot1 = Format::kScales == 2 ? dots[1][c] : 0;
        const float value = scaled_sum<Format>(rows[c % 2], dots[0][c], dot1, x_sums);
        accumulators[m][c] = __fmaf_rn(x_scale.d, value, accumulators[m][c]);
      }
    }
  }
}

template <class Format, int kTokens>
struct Multiplier {
  using Block = typename Format::Block;
  static constexpr int kRun = kRunBytes<Format>;

  const PartParams& params;
  const int lane, warp, num_warps;
  const BlockBuffers<Format, kTokens> block;
  WarpBuffers<Format>& own;
  const int64_t first_row, first_token, row_bytes;  // of the block
  const int num_rows;
  const int tile, part, first_slice, num_slices;  // of the warp; no slices: it has no rows
  const int64_t tile_row;
  const uint8_t* const W;  // the tile's first row

  __device__ __forceinline__ Multiplier(const PartParams& params, void* shared)
      : params(params),
        lane(threadIdx.x % kWarpSize),
        warp(threadIdx.x / kWarpSize),
        num_warps(blockDim.x / kWarpSize),
        block(shared, blockDim.x / kWarpSize, params.num_parts * params.chunk_slices),
        own(block.warps[warp]),
        first_row(blockIdx.x % params.row_blocks * params.block_tiles * kTileRows),
        first_token(blockIdx.x / params.row_blocks * kTokens),
        row_bytes(int64_t{params.num_groups / Format::kGroupsPerBlock} * sizeof(Block)),
        num_rows(static_cast<int>(min(int64_t{params.block_tiles} * kTileRows, params.rows - first_row))),
        tile(warp / params.num_parts),
        part(warp - tile * params.num_parts),
        first_slice(part * params.part_slices),
        num_slices(tile * kTileRows < num_rows
                       ? min(params.part_slices, (params.num_groups + kSliceGroups - 1) / kSliceGroups - first_slice)
                       : 0),
        tile_row(first_row + tile * kTileRows),
        W(params.W + tile_row * row_bytes) {}

  // Asks the warp's first bytes, about two slices, into the L2 cache: a hint and no read, allowed before the
  // predecessor has ended. Much more would be in the way of X.
  __device__ __forceinline__ void prefetch() const {
    constexpr int kLines = kWarpSize / kTileRows;  // of a row
    const int row = lane / kLines, at = lane % kLines * kCacheLine;
    if (first_slice * int64_t{kRun} + at < row_bytes && num_slices > 0 && tile_row + row < params.rows) {
      prefetch_to_l2(run_of(row, 0) + at);
    }
  }

  // Starts to copy slices [chunk, chunk + chunk_slices) of each part of X; zeros where there is no such token or group.
  __device__ __forceinline__ void copy_activations(int chunk) const {
    const int groups = min(params.chunk_slices, params.part_slices - chunk) * kSliceGroups;
    for (int i = warp; i < kTokens * params.num_parts; i += num_warps) {
      const int token = i % kTokens, part = i / kTokens;
      const int to_slice = part * params.chunk_slices;
      const int first_group = (part * params.part_slices + chunk) * kSliceGroups;
      const bool has_token = first_token + token < params.num_tokens;
      const int64_t at = has_token ? (first_token + token) * params.num_groups + first_group : 0;
      const uint8_t* quants = params.X.quants + at * kGroupSize;
      uint8_t* to = block.activations + token * block.pitch + to_slice * kSliceSize;
      for (int piece = lane; piece < groups * 2; piece += kWarpSize) {
        const bool present = has_token && first_group + piece / 2 < params.num_groups;
        copy_async<16>(to + piece * 16, present ? quants + piece * 16 : params.X.quants, present ? 16 : 0);
      }
      for (int group = lane; group < groups; group += kWarpSize) {
        const bool present = has_token && first_group + group < params.num_groups;
        copy_async<8>(&block.scales[(to_slice * kSliceGroups + group) * kTokens + token],
                      params.X.scales + (present ? at + group : 0), present ? 8 : 0);
      }
    }
  }

  // Slice i of the warp's part of the tile's row `row`.
  __device__ __forceinline__ const uint8_t* run_of(int row, int i) const {
    return W + row * row_bytes + (first_slice + i) * kRun;
  }

  // Starts to copy slice i.
  __device__ __forceinline__ void copy_slice(int i) const {
    auto& staged = own.staged[i % kStages];
    const int64_t left = row_bytes - int64_t{first_slice + i} * kRun;
    const int bytes = left < kRun ? static_cast<int>(left) : kRun;
    constexpr int kPieces = sizeof(staged[0]) / kPiece;
    constexpr int kSteps = (kTileRows * kPieces + kWarpSize - 1) / kWarpSize;
    if (tile_row > 0 && tile_row + kTileRows < params.rows) {  // a row is longer than a piece: not at an edge of W
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int row = (step * kWarpSize + lane) / kPieces, at = (step * kWarpSize + lane) % kPieces * kPiece;
        const uint8_t* run = run_of(row, i);
        const int offset = staged_offset(run);
        if (row < kTileRows && at < offset + bytes) copy_async_16(&staged[row][at], run - offset + at);
      }
    } else {
#pragma unroll 1
      for (int row = 0; row < kTileRows && tile_row + row < params.rows; ++row) {
        stage_run_at_edge(staged[row], run_of(row, i), bytes, params.W, params.W + params.rows * row_bytes);
      }
    }
  }

  // Where row `row` of slice i is in shared memory.
  __device__ __forceinline__ const Block* blocks_of(int row, int i) const {
    return reinterpret_cast<const Block*>(own.staged[i % kStages][row] + staged_offset(run_of(row, i)));
  }

  // The scales of slice i, for every lane to read. What was not copied gets a scale of 0, and is decoded, too, whatever
  // it is.
  __device__ __forceinline__ void store_scales(int i) const {
    const int group = lane % kSliceGroups;
#pragma unroll
    for (int row = lane / kSliceGroups; row < kTileRows; row += kWarpSize / kSliceGroups) {
      const bool present = tile_row + row < params.rows && (first_slice + i) * kSliceGroups + group < params.num_groups;
      WeightGroup weights;
      Format::set_scales(blocks_of(row, i)[group / Format::kGroupsPerBlock], group % Format::kGroupsPerBlock, weights);
#pragma unroll
      for (int s = 0; s < Format::kScales; ++s) {
        own.scales[group][s][row] = present ? weights.scale[s] : 0.0f;
        if constexpr (Format::kHasOffset) own.offsets[group][s][row] = present ? weights.offset[s] : 0.0f;
      }
    }
  }

  // Adds the parts, in their order.
  __device__ __forceinline__ void store(const float (&accumulators)[kTokens / 16][4]) const {
    TileSums<kTokens>* const sums = reinterpret_cast<TileSums<kTokens>*>(block.warps);
    __syncthreads();  // nobody needs what was there
#pragma unroll
    for (int m = 0; m < kTokens / 16; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        *reinterpret_cast<float2*>(&sums[warp][m * 16 + h * 8 + lane / 4][lane % 4 * 2]) =
            make_float2(accumulators[m][2 * h], accumulators[m][2 * h + 1]);
      }
    }
    __syncthreads();
    for (int token = warp; token < kTokens && first_token + token < params.num_tokens; token += num_warps) {
      for (int row = lane; row < num_rows; row += kWarpSize) {
        float total = 0.0f;
        for (int p = 0; p < params.num_parts; ++p) {
          total += sums[row / kTileRows * params.num_parts + p][token][row % kTileRows];
        }
        store_element(params.result, params.result_dtype,
                      (first_token + token) * params.result_stride + first_row + row, total);
      }
    }
  }

  __device__ __forceinline__ void run() const {
    release_successors();
    prefetch();
    wait_for_predecessor();
    float accumulators[kTokens / 16][4] = {};
    if (num_slices > 0) copy_slice(0);
#pragma unroll 1
    for (int chunk = 0; chunk < params.part_slices; chunk += params.chunk_slices) {
      if (chunk > 0) __syncthreads();  // nobody needs the chunk before
      copy_activations(chunk);
      commit_copies();
      wait_for_copies<0>();
      __syncthreads();
      const int end = min(chunk + params.chunk_slices, num_slices);
#pragma unroll 1
      for (int i = chunk; i < end; ++i) {
        if (i + 1 < num_slices) copy_slice(i + 1);
        commit_copies();
        wait_for_copies<kStages - 1>();
        __syncwarp();
        store_scales(i);
        __syncwarp();
        const int slice = part * params.chunk_slices + i - chunk;
        multiply_slice<Format, kTokens>(blocks_of(lane / 4, i), own, block.activations + slice * kSliceSize,
                                        block.pitch, block.scales + slice * kSliceGroups * kTokens, accumulators);
        __syncwarp();  // before the next slice takes this one's place
      }
    }
    store(accumulators);
  }
};

template <class Format, int kTokens>
__global__ void __launch_bounds__(kMostWarps* kWarpSize, 1)
    ggml_mul_mat_parts_kernel(const __grid_constant__ PartParams params) {
  extern __shared__ uint4 shared[];
  Multiplier<Format, kTokens>(params, shared).run();
}

template <class Format, int kTokens>
Status launch_tokens(const MatMulParams& call, Stream stream) {
  using Buffers = BlockBuffers<Format, kTokens>;
  PartParams params = {call};
  const auto kernel = ggml_mul_mat_parts_kernel<Format, kTokens>;
  const int64_t token_tiles = (params.num_tokens + kTokens - 1) / kTokens;
  const int64_t row_tiles = (params.rows + kTileRows - 1) / kTileRows;
  const int most_bytes = max_shared_memory();
  int most_tiles = std::max(1, kMostWarps / params.num_parts);
  while (most_tiles > 1 && Buffers::bytes(most_tiles * params.num_parts, params.num_parts) > most_bytes) --most_tiles;
  // As few blocks for each multiprocessor as that allows, and the tiles shared out evenly over them.
  const int64_t least_blocks = (row_tiles + most_tiles - 1) / most_tiles * token_tiles;
  const int64_t rounds = (least_blocks + num_sms() - 1) / num_sms();
  const int64_t most_row_blocks = std::max<int64_t>(1, num_sms() * rounds / token_tiles);
  params.block_tiles = static_cast<int>((row_tiles + most_row_blocks - 1) / most_row_blocks);
  params.row_blocks = (row_tiles + params.block_tiles - 1) / params.block_tiles;
  // Chunks of one size.
  constexpr int kLeastWarps = 16;  // those without a tile help to copy X
  int num_warps = std::max(params.block_tiles * params.num_parts, kLeastWarps);
  if (Buffers::bytes(num_warps, params.num_parts) > most_bytes) num_warps = params.block_tiles * params.num_parts;
  const int one_slice = Buffers::bytes(0, params.num_parts) - Buffers::bytes(0, 0);
  const int most_slices = std::max(1, (most_bytes - Buffers::bytes(num_warps, 0)) / one_slice);
  const int chunks = std::max(1, (params.part_slices + most_slices - 1) / most_slices);
  params.chunk_slices = std::max(1, (params.part_slices + chunks - 1) / chunks);
  const int shared_bytes = Buffers::bytes(num_warps, params.num_parts * params.chunk_slices);
  SGL_RETURN_IF_ERROR(allow_shared_memory("ggml_mul_mat_a8", kernel, shared_bytes));
  return launch("ggml_mul_mat_a8", kernel,
                {.grid = static_cast<unsigned>(params.row_blocks * token_tiles),
                 .block = static_cast<unsigned>(num_warps * kWarpSize),
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

Status ggml_mul_mat_parts(const MatMulParams& params, int64_t type, Stream stream) {
  SGL_SWITCH_GGML_TYPE(type, F, return mul_mat<F>(params, stream));
  return OkStatus();  // not reached: the type was checked
}

}  // namespace sgl_kernel::SGL_TARGET
