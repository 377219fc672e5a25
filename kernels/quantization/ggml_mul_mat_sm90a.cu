// ggml_mul_mat_a8 on Hopper. Small products are ggml_mul_mat_slices.cu's. For others a first small kernel brings X to
// f16 in the workspace, and a second one multiplies.
//
// A block has a tile of 64 rows of W by 16, 32 or 64 tokens, or of 192 by 128; where there are few tiles, a cluster of
// blocks shares the k of each, and adds up the sums over its shared memory. Bound by the warps that copy W: a copy
// holds the registers of its addresses until it is done, so that a warp has few on their way.
//
// Measured by tools/bench on an H200, 2026-11-23, 9216 x 4096, bf16, in µs; in turns with it torch 2.11's product with
// a bf16 weight:
//   tokens     16     64     128    1024
//   Q4_0       22.3   27.4   35.3   172
//   Q8_0       28.0   34.0   42.6   211
//   Q4_K       25.2   34.8   39.7   188
//   Q6_K       29.9   39.2   42.8   209
//   torch.mm   24.5   22.0   23.0   108
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/cluster.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/ggml_mul_mat.cuh"
#include "kernels/quantization/ggml_mul_mat_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr char kName[] = "ggml_mul_mat_a8";
constexpr int kWidenThreads = 256;

// A block for each token: its largest magnitude, and then its elements by a power of two that brings that to
// [2^14, 2^15); zeros behind k, to whole slices. Tokens behind the last one are left as they are: what they hold is in
// no other token's sums.
__global__ void __launch_bounds__(kWidenThreads)
    ggml_activations_to_f16_kernel(uint8_t* tiles, float* scales, Activations X, int k, int num_chunks,
                                   int tile_tokens) {
  release_successors();
  wait_for_predecessor();
  const int64_t token = blockIdx.x;
  constexpr int kStep = kWidenThreads * 8;
  // By its bits, which order as the numbers do, with infinity and NaN on top.
  uint32_t amax_bits = 0;
  for (int i = threadIdx.x * 8; i < k; i += kStep) {
    float x[8];
    load_eight(X, token, i, x);
#pragma unroll
    for (int j = 0; j < 8; ++j) amax_bits = max(amax_bits, __float_as_uint(x[j]) & 0x7fffffff);
  }
  __shared__ uint32_t warp_bits[kWidenThreads / kWarpSize];
  amax_bits = __reduce_max_sync(0xffffffff, amax_bits);
  if (threadIdx.x % kWarpSize == 0) warp_bits[threadIdx.x / kWarpSize] = amax_bits;
  __syncthreads();
#pragma unroll
  for (const uint32_t bits : warp_bits) amax_bits = max(amax_bits, bits);
  constexpr uint32_t kInfinity = 0x7f800000, kSmallest = (127 - 100) << 23;  // 2^-100
  const bool finite = amax_bits < kInfinity, ordinary = finite && amax_bits >= kSmallest;
  const uint32_t exponent = amax_bits >> 23;
  const float factor = ordinary ? __uint_as_float((127 + 14 + 127 - exponent) << 23) : 0.0f;
  if (threadIdx.x == 0) {
    const float inverse = __uint_as_float((exponent - 14) << 23) / kWeightScale;
    scales[token] = ordinary ? inverse : finite ? 0.0f : __uint_as_float(0x7fc00000);
  }
  const int row = static_cast<int>(token % tile_tokens);
  constexpr int kChunk = kChunkGroups * kGroupSize;
  uint8_t* const chunks =
      tiles + (token / tile_tokens * num_chunks * tile_tokens + row) * static_cast<int64_t>(kChunkRowBytes);
  for (int i = threadIdx.x * 8; i < num_chunks * kChunk; i += kStep) {
    float x[8] = {};
    if (i < k) load_eight(X, token, i, x);
    uint32_t pairs[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int first = j / 2 * 4 + j % 2;  // and the next but one: even ones, odd ones, and again
      const __half2 pair = __floats2half2_rn(x[first] * factor, x[first + 2] * factor);
      pairs[j] = *reinterpret_cast<const uint32_t*>(&pair);
    }
    uint8_t* const chunk = chunks + static_cast<int64_t>(i / kChunk) * tile_tokens * kChunkRowBytes;
    const int piece = i % kChunk / 16 * 2, half = i % 16;  // half: 8 bytes of each piece
    *reinterpret_cast<uint2*>(chunk + swizzled_piece(row, piece) + half) = make_uint2(pairs[0], pairs[2]);
    *reinterpret_cast<uint2*>(chunk + swizzled_piece(row, piece + 1) + half) = make_uint2(pairs[1], pairs[3]);
  }
}

template <class T>
__device__ __forceinline__ void store_four(T* result, bool vector, int count, const float (&values)[4]) {
  Vec<T, 4> rounded;
#pragma unroll
  for (int i = 0; i < 4; ++i) rounded[i] = from_float<T>(values[i]);
  if (vector) {
    rounded.store(result);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) result[i] = rounded[i];
    }
  }
}
__device__ __forceinline__ void store_four(void* result, DType dtype, int64_t index, bool vector, int count,
                                           const float (&values)[4]) {
  if (dtype == DType::kF16) {
    store_four(static_cast<__half*>(result) + index, vector, count, values);
  } else if (dtype == DType::kBF16) {
    store_four(static_cast<__nv_bfloat16*>(result) + index, vector, count, values);
  } else {
    store_four(static_cast<float*>(result) + index, vector, count, values);
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    ggml_mul_mat_tile_kernel(const __grid_constant__ TileParams params) {
  extern __shared__ __align__(kSwizzleAtomBytes) uint8_t shared[];
  auto& buffers = *reinterpret_cast<typename Shape::Buffers*>(shared);
  auto& sums_out = *reinterpret_cast<typename Shape::Sums*>(shared);
  auto& barriers = *reinterpret_cast<typename Shape::Barriers*>(shared + Shape::kBarriersOffset);
  constexpr int kTokens = Shape::kTokens, kRows = Shape::kRows;
  const int splits = params.splits;
  const int64_t tile_index = blockIdx.x / splits;
  const int rank = static_cast<int>(blockIdx.x - tile_index * splits);
  // Neighbouring blocks share their tokens: all of W passes while a few tiles of X stay in the caches.
  const int64_t token_tile = tile_index / params.row_blocks, row_block = tile_index - token_tile * params.row_blocks;
  const int64_t first_row = row_block * kRows, first_token = token_tile * kTokens;
  const int begin = params.num_slices * rank / splits, end = params.num_slices * (rank + 1) / splits;
  const TileShare share = {first_row,
                           params.X + token_tile * params.num_slices * Shape::Slice::kChunks * Shape::kChunkBytes,
                           begin, end - begin};
  release_successors();
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kStages; ++i) {
      barriers.full[i].init(1);
      barriers.empty[i].init(Shape::kWarps);
    }
    for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
      for (int i = 0; i < Shape::kWeightStages; ++i) {
        barriers.weights_full[tile][i].init(kWarpSize);
        barriers.weights_empty[tile][i].init(kWarpgroup);
      }
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= Shape::kMultiplying) {
    const TileCopier<Shape> copier(params, buffers, barriers, share);
    if (token_tile == 0) copier.prefetch();
    wait_for_predecessor();
    copier.run();
  } else {
    wait_for_predecessor();
    const TileMultiplier<Shape> multiplier(params, buffers, barriers, share);
    float sums[kTokens / 2];
    multiplier.run(sums);
    named_barrier_sync(1, Shape::kMultiplying);  // the sums lie over the other buffers
    multiplier.leave_sums(sums_out, sums);
  }
  __syncthreads();
  if (splits > 1) {
    publish_to_cluster();
    wait_for_cluster();
  }
  // Each block adds up its share of the tokens, four neighbouring rows a thread.
  const int first = kTokens * rank / splits, last = kTokens * (rank + 1) / splits;
  for (int i = first * (kRows / 4) + threadIdx.x; i < last * (kRows / 4); i += Shape::kThreads) {
    const int row = i % (kRows / 4) * 4, token = i / (kRows / 4);
    const int64_t r = first_row + row, t = first_token + token;
    if (t >= params.num_tokens || r >= params.rows) continue;
    const float* place = &sums_out[row / kTileRows][token][row % kTileRows];
    float4 sum = {};
    for (int from = 0; from < splits; ++from) {
      const uint4 bits = load_from_block(place, from);
      const float4 part = reinterpret_cast<const float4&>(bits);
      sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
    }
    const float scale = params.X_scales[t];
    const float values[4] = {sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale};
    const int count = static_cast<int>(min(int64_t{4}, params.rows - r));
    store_four(params.result, params.result_dtype, t * params.result_stride + r, params.result_vectors && count == 4,
               count, values);
  }
  if (splits > 1) {
    arrive_at_cluster();  // no block leaves while another reads it
    wait_for_cluster();
  }
}

template <class Shape>
int64_t token_tiles_of(const TileParams& params) {
  return (params.num_tokens + Shape::kTokens - 1) / Shape::kTokens;
}
template <class Shape>
int64_t row_blocks_of(const TileParams& params) {
  return (params.rows + Shape::kRows - 1) / Shape::kRows;
}

template <class Shape>
Status multiply(TileParams params, uint8_t* workspace, const Activations& X, Stream stream) {
  static_assert(Shape::kFits);
  const int num_chunks = params.num_slices * Shape::Slice::kChunks;
  const int64_t token_tiles = token_tiles_of<Shape>(params);
  float* const scales = reinterpret_cast<float*>(workspace + token_tiles * num_chunks * Shape::kChunkBytes);
  SGL_RETURN_IF_ERROR(launch(kName, ggml_activations_to_f16_kernel,
                             {.grid = static_cast<unsigned>(params.num_tokens), .block = kWidenThreads, .pdl = true},
                             stream, workspace, scales, X, params.num_groups * kGroupSize, num_chunks, Shape::kTokens));
  params.X = workspace;
  params.X_scales = scales;
  params.row_blocks = row_blocks_of<Shape>(params);
  // As many splits as find room at a time, if there are slices for them.
  constexpr int64_t kMostSplits = 4;
  const int64_t tiles = params.row_blocks * token_tiles;
  const int64_t room = std::max<int64_t>(1, int64_t{num_sms()} * Shape::kBlocks / tiles);
  params.splits = static_cast<int>(std::min<int64_t>({kMostSplits, room, params.num_slices}));
  const auto kernel = ggml_mul_mat_tile_kernel<Shape>;
  SGL_RETURN_IF_ERROR(allow_shared_memory(kName, kernel, Shape::kSharedBytes));
  return launch(kName, kernel,
                {.grid = static_cast<unsigned>(tiles * params.splits),
                 .block = Shape::kThreads,
                 .shared_bytes = Shape::kSharedBytes,
                 .pdl = true,
                 .cluster = params.splits},
                stream, params);
}

template <class Format>
Status mul_mat(TileParams params, uint8_t* workspace, const Activations& X, Stream stream) {
  constexpr int kSliceGroups = SliceOf<Format>::kGroups;
  params.num_slices = (params.num_groups + kSliceGroups - 1) / kSliceGroups;
  // ggml_workspace_size() has room for these tiles' tokens.
  using Least = MulMatShape<Format, 16, 1, 5>;
  using Small = MulMatShape<Format, 32, 1, 5>;
  using Middle = MulMatShape<Format, 64, 1, 4>;
  using Large = MulMatShape<Format, 128, 3, 1>;
  if (params.num_tokens <= Least::kTokens) return multiply<Least>(params, workspace, X, stream);
  if (params.num_tokens <= Small::kTokens) return multiply<Small>(params, workspace, X, stream);
  // Large tiles, if they are at least a quarter of the multiprocessors.
  const int64_t large_tiles = row_blocks_of<Large>(params) * token_tiles_of<Large>(params);
  return params.num_tokens > Middle::kTokens && large_tiles * 4 >= num_sms()
             ? multiply<Large>(params, workspace, X, stream)
             : multiply<Middle>(params, workspace, X, stream);
}

}  // namespace

Status ggml_mul_mat_a8(TensorView result, TensorView workspace, TensorView W, TensorView X, int64_t type, int64_t row,
                       Stream stream) {
  // Products of elements: with fewer the other kernel is done sooner.
  constexpr int64_t kFewProducts = int64_t{1} << 28;
  if (X.num_elements() * row < kFewProducts) {
    MatMulParams small = {};
    SGL_RETURN_IF_ERROR(ggml_prepare_mul_mat("ggml_mul_mat_a8", small, result, workspace, W, X, row, stream));
    return ggml_mul_mat_slices(small, type, stream);
  }
  TileParams params = {};
  params.result = result.data();
  params.result_stride = result.stride(0);
  params.result_dtype = result.dtype();
  const int64_t four = 4 * size_of(result.dtype());
  params.result_vectors = reinterpret_cast<uintptr_t>(result.data()) % four == 0 && result.stride(0) % 4 == 0;
  params.W = W.data<const uint8_t>();
  params.rows = row;
  params.num_tokens = X.size(0);
  params.num_groups = static_cast<int>(X.size(1) / kGroupSize);
  SGL_SWITCH_GGML_TYPE(type, F, return mul_mat<F>(params, workspace.data<uint8_t>(), activations_of(X), stream));
  return OkStatus();  // not reached: the type was checked
}

}  // namespace sgl_kernel::SGL_TARGET
