// ggml_mul_mat_a8 on Hopper: a first small kernel quantizes X into the workspace, a second one multiplies.
//
// A block has a tile of 64 or 128 rows of W by 16 to 128 tokens. For few tokens the strands of k
// (ggml_mul_mat_sm90a.cuh says what they are) are shared out over a cluster of four blocks, which then add up each
// other's sums; for many, a block does them all. Bound by the instructions that make the integer sums of a group floats
// and scale them, three for each sum, and for few tokens by those that decode W. Not measured yet.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/cluster.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/ggml_activations.cuh"
#include "kernels/quantization/ggml_mul_mat_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr char kName[] = "ggml_mul_mat_a8";
constexpr int kQuantizeThreads = 256;
constexpr int kMostSharedBytes = 227 << 10;  // of a block, on Hopper

// Four lanes a group. Tokens behind the last one are left as they are: what they hold is in no other token's sums.
// kScales is the weights' number of scales in a group, 0 if they have no offsets.
template <int kTokens, int kScales>
__global__ void __launch_bounds__(kQuantizeThreads)
    ggml_quantize_activations_kernel(ActivationChunk<kTokens, (kScales > 0)>* chunks, Activations X, int64_t num_tokens,
                                     int num_groups) {
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
  const int num_chunks = (num_groups + kChunkGroups - 1) / kChunkGroups;
  auto& chunk = chunks[token / kTokens * num_chunks + group / kChunkGroups];
  const int row = static_cast<int>(token % kTokens), column = group % kChunkGroups;
  *reinterpret_cast<uint2*>(&chunk.quants[row][swizzled_piece(row, column * 2 + quarter / 2) + quarter % 2 * 8]) =
      bytes;
  if (quarter == 0) {
    auto& pair = chunk.scales[column][row / 2];
    pair.d[row % 2] = scale.d;
    if constexpr (kScales == 1) {
      const float2 sums = __half22float2(scale.sums);
      pair.sums[row % 2] = __float_as_uint(sums.x + sums.y);
    } else if constexpr (kScales == 2) {
      pair.sums[row % 2] = *reinterpret_cast<const uint32_t*>(&scale.sums);
    }
  }
}

// One element of a block's result; tile: which of its warpgroups'.
__device__ __forceinline__ void store_result(const TileParams& params, int64_t first_row, int64_t first_token, int tile,
                                             int token, int row, float value) {
  const int64_t r = first_row + tile * kTileRows + row, t = first_token + token;
  if (t < params.num_tokens && r < params.rows) {
    store_element(params.result, params.result_dtype, t * params.result_stride + r, value);
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kLeastBlocks)
    ggml_mul_mat_tile_kernel(const __grid_constant__ TileParams params) {
  extern __shared__ __align__(kSwizzleAtomBytes) uint8_t shared[];
  auto& barriers = *reinterpret_cast<typename Shape::Barriers*>(shared + Shape::kBarriersOffset);
  constexpr int kTokens = Shape::kTokens, kBlockRows = Shape::kRowTiles * kTileRows;
  const int strand = Shape::kClusterStrands ? static_cast<int>(blockIdx.x % kStrands) : 0;
  const int64_t tile_index = Shape::kClusterStrands ? blockIdx.x / kStrands : blockIdx.x;
  // Neighbouring blocks share their tokens: all of W passes while a few tiles of X stay in the caches.
  const int64_t token_tile = tile_index / params.row_blocks, row_block = tile_index - token_tile * params.row_blocks;
  const int64_t first_row = row_block * kBlockRows, first_token = token_tile * kTokens;
  release_successors();
  TileMultiplier<Shape> multiplier(params, shared, barriers, row_block, token_tile);
  if constexpr (Shape::kClusterStrands) multiplier.prefetch(strand);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kStages; ++i) {
      barriers.full[i].init(1);
      barriers.empty[i].init(Shape::kThreads / kWarpSize);
    }
    fence_barrier_init();
  }
  __syncthreads();
  wait_for_predecessor();
  multiplier.run(strand);
  if constexpr (Shape::kClusterStrands) {
    publish_to_cluster();
    wait_for_cluster();
    // Each block adds up a quarter of the tokens.
    static_assert(Shape::kRowTiles == 1);
    constexpr int kPart = kTokens / kStrands;
    for (int i = threadIdx.x; i < kPart * kTileRows; i += Shape::kThreads) {
      const int token = strand * kPart + i / kTileRows, row = i % kTileRows;
      const float* place = &multiplier.sums_out[0][token][row];
      float value = load_from_block(place, 0);
#pragma unroll
      for (int rank = 1; rank < kStrands; ++rank) value += load_from_block(place, rank);
      store_result(params, first_row, first_token, 0, token, row, value);
    }
    arrive_at_cluster();  // no block leaves while another reads it
    wait_for_cluster();
  } else {
    __syncthreads();
    for (int i = threadIdx.x; i < Shape::kRowTiles * kTokens * kTileRows; i += Shape::kThreads) {
      const int row = i % kTileRows, token = i / kTileRows % kTokens, tile = i / (kTileRows * kTokens);
      store_result(params, first_row, first_token, tile, token, row, multiplier.sums_out[tile][token][row]);
    }
  }
}

template <class Format, int kTokens, int kRowTiles, bool kClusterStrands>
Status multiply(TileParams params, const Activations& X, Stream stream) {
  using Shape = MulMatShape<Format, kTokens, kRowTiles, kClusterStrands>;
  static_assert(Shape::kSharedBytes <= kMostSharedBytes);
  if (params.num_groups > 0) {
    const int64_t lanes = params.num_tokens * params.num_groups * 4;
    auto* chunks = reinterpret_cast<typename Shape::Chunk*>(const_cast<uint8_t*>(params.X));
    constexpr int kScales = Format::kHasOffset ? Format::kScales : 0;
    SGL_RETURN_IF_ERROR(launch(kName, ggml_quantize_activations_kernel<kTokens, kScales>,
                               {.grid = static_cast<unsigned>((lanes + kQuantizeThreads - 1) / kQuantizeThreads),
                                .block = kQuantizeThreads,
                                .pdl = true},
                               stream, chunks, X, params.num_tokens, params.num_groups));
  }
  constexpr int kBlockRows = kRowTiles * kTileRows;
  params.row_blocks = (params.rows + kBlockRows - 1) / kBlockRows;
  const int64_t tiles = params.row_blocks * ((params.num_tokens + kTokens - 1) / kTokens);
  const auto kernel = ggml_mul_mat_tile_kernel<Shape>;
  SGL_RETURN_IF_ERROR(allow_shared_memory(kName, kernel, Shape::kSharedBytes));
  return launch(kName, kernel,
                {.grid = static_cast<unsigned>(tiles * (kClusterStrands ? kStrands : 1)),
                 .block = Shape::kThreads,
                 .shared_bytes = Shape::kSharedBytes,
                 .pdl = true,
                 .cluster = kClusterStrands ? kStrands : 1},
                stream, params);
}

template <class Format>
Status mul_mat(const TileParams& params, const Activations& X, Stream stream) {
  if (params.num_tokens <= 16) return multiply<Format, 16, 1, true>(params, X, stream);
  if (params.num_tokens <= 32) return multiply<Format, 32, 1, true>(params, X, stream);
  const int64_t large_tiles = (params.rows + 127) / 128 * ((params.num_tokens + 127) / 128);
  if (params.num_tokens <= 64 || large_tiles < num_sms()) return multiply<Format, 64, 1, true>(params, X, stream);
  return multiply<Format, 128, 2, false>(params, X, stream);
}

}  // namespace

Status ggml_mul_mat_a8(TensorView result, TensorView workspace, TensorView W, TensorView X, int64_t type, int64_t row,
                       Stream stream) {
  TileParams params = {};
  params.result = result.data();
  params.result_stride = result.stride(0);
  params.result_dtype = result.dtype();
  params.W = W.data<const uint8_t>();
  params.X = workspace.data<uint8_t>();
  params.rows = row;
  params.num_tokens = X.size(0);
  params.num_groups = static_cast<int>(X.size(1) / kGroupSize);
  SGL_SWITCH_GGML_TYPE(type, F, return mul_mat<F>(params, activations_of(X), stream));
  return OkStatus();  // not reached: the type was checked
}

}  // namespace sgl_kernel::SGL_TARGET
