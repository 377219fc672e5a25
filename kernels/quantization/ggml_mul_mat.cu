// ggml_mul_mat_a8: a first small kernel quantizes X into the workspace, a second one multiplies on the tensor cores.
//
// A block computes a tile of kTileRows rows of W by kTileTokens tokens. In each step over k it decodes kStepGroups
// groups of its rows from the blocks of W in global memory to signed bytes in shared memory, while X's bytes are copied
// there, one step ahead of the products. The integer sums of a group of 32 become floats and are scaled at once, since
// every group has scales of its own: that, in the float units, is what bounds many tokens; few are bound by W's bytes.
//
// H200, 2026-11-23, 8192 x 8192 Q4_1 or Q8_0: 4096 tokens at 127 to 132 TFLOP/s, 64 at 56 to 70. Up to 64 tokens are
// bound by the latency of a block's steps: too few bytes are on their way.
//
// A result adds its groups in their order in either tile shape: a token's bits do not depend on the number of tokens.
#include "kernels/base/launch.h"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/mma_int8.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/ggml_activations.cuh"
#include "kernels/quantization/ggml_decode.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

// The workspace: bytes [num_tokens, groups * 32], then scales [num_tokens, groups].
struct Workspace {
  uint8_t* quants;
  ActivationScale* scales;
};

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

struct MatMulParams {
  void* result;
  int64_t result_stride;
  DType result_dtype;
  const uint8_t* W;
  Workspace X;
  int64_t rows;
  int64_t num_tokens;
  int num_groups;  // k / 32
};

// Many tokens: 8 warps of 32 rows by 32 tokens. Few, or few tiles: 4 warps of 16 by 16.
struct LargeTile {
  static constexpr int kTileRows = 128, kTileTokens = 64, kWarpRows = 32, kWarpTokens = 32, kStepGroups = 4;
};
struct SmallTile {
  static constexpr int kTileRows = 32, kTileTokens = 32, kWarpRows = 16, kWarpTokens = 16, kStepGroups = 8;
};

template <class Tile>
constexpr int kTileThreads = Tile::kTileRows / Tile::kWarpRows * (Tile::kTileTokens / Tile::kWarpTokens) * kWarpSize;

// One of the two buffers in shared memory.
template <class Format, class Tile>
struct alignas(16) StepBuffer {
  static constexpr int kStepBytes = Tile::kStepGroups * kGroupSize;
  // 16 bytes of padding put the 8 rows that a matrix load reads at once into different banks.
  uint8_t weights[Tile::kTileRows][kStepBytes + 16];
  uint8_t activations[Tile::kTileTokens][kStepBytes + 16];
  ActivationScale activation_scales[Tile::kStepGroups][Tile::kTileTokens];
  float weight_scales[Tile::kStepGroups][Format::kScales][Tile::kTileRows];
  float weight_offsets[Format::kHasOffset ? Tile::kStepGroups : 1][Format::kScales][Tile::kTileRows];
};

template <class Format, class Tile>
constexpr int kSharedBytes = 2 * sizeof(StepBuffer<Format, Tile>);

// Copies kStepGroups groups of the tile's tokens; zeros where there is no such token or group.
template <class Format, class Tile>
__device__ __forceinline__ void copy_activations(const MatMulParams& params, int64_t first_token, int first_group,
                                                 StepBuffer<Format, Tile>& buffer) {
  constexpr int kPieces = Tile::kStepGroups * 2;  // of 16 bytes in a token's step
  for (int i = threadIdx.x; i < Tile::kTileTokens * kPieces; i += kTileThreads<Tile>) {
    const int token = i / kPieces, piece = i % kPieces;
    const bool present = first_token + token < params.num_tokens && first_group + piece / 2 < params.num_groups;
    const int64_t at =
        (first_token + token) * params.num_groups * kGroupSize + int64_t{first_group} * kGroupSize + piece * 16;
    copy_async<16>(&buffer.activations[token][piece * 16], params.X.quants + (present ? at : 0), present ? 16 : 0);
  }
  for (int i = threadIdx.x; i < Tile::kTileTokens * Tile::kStepGroups; i += kTileThreads<Tile>) {
    const int token = i / Tile::kStepGroups, group = i % Tile::kStepGroups;
    const bool present = first_token + token < params.num_tokens && first_group + group < params.num_groups;
    const int64_t at = (first_token + token) * params.num_groups + first_group + group;
    copy_async<8>(&buffer.activation_scales[group][token], params.X.scales + (present ? at : 0), present ? 8 : 0);
  }
  commit_copies();
}

// The groups that a thread decodes in a step, held in registers while the products of the step before are made.
template <class Format, class Tile>
struct DecodedStep {
  static constexpr int kThreads = kTileThreads<Tile>;
  static constexpr int kGroups = Tile::kTileRows * Tile::kStepGroups / kThreads;
  static_assert(kGroups * kThreads == Tile::kTileRows * Tile::kStepGroups);
  WeightGroup groups[kGroups];

  __device__ __forceinline__ void decode(const MatMulParams& params, int64_t first_row, int first_group) {
    using Block = typename Format::Block;
    const int blocks_per_row = params.num_groups / Format::kGroupsPerBlock;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int task = i * kThreads + threadIdx.x;
      const int64_t row = first_row + task / Tile::kStepGroups;
      const int group = first_group + task % Tile::kStepGroups;
      groups[i] = {};
      if (row >= params.rows || group >= params.num_groups) continue;
      const Block* blocks = reinterpret_cast<const Block*>(params.W) + row * blocks_per_row;
      const Block* block = blocks + group / Format::kGroupsPerBlock;
      if (group + 2 * Tile::kStepGroups < params.num_groups) {
        prefetch_to_l2(blocks + (group + 2 * Tile::kStepGroups) / Format::kGroupsPerBlock);
      }
      Format::decode(*block, group % Format::kGroupsPerBlock, groups[i]);
    }
  }

  __device__ __forceinline__ void store(StepBuffer<Format, Tile>& buffer) const {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int task = i * kThreads + threadIdx.x;
      const int row = task / Tile::kStepGroups, group = task % Tile::kStepGroups;
      const uint32_t (&quants)[8] = groups[i].quants;
      uint4* bytes = reinterpret_cast<uint4*>(&buffer.weights[row][group * kGroupSize]);
      bytes[0] = make_uint4(quants[0], quants[1], quants[2], quants[3]);
      bytes[1] = make_uint4(quants[4], quants[5], quants[6], quants[7]);
#pragma unroll
      for (int s = 0; s < Format::kScales; ++s) {
        buffer.weight_scales[group][s][row] = groups[i].scale[s];
        if constexpr (Format::kHasOffset) buffer.weight_offsets[group][s][row] = groups[i].offset[s];
      }
    }
  }
};

// An integer sum comes as the bits of the float 1.5 * 2^23 + sum, since the products start from that float's bits:
// exact below 2^22 (32 * 128 * 127 is 2^19), and cheaper than a conversion.
constexpr int kFloatBase = 0x4b400000;
__device__ __forceinline__ float sum_of_bits(int bits) { return __fsub_rn(__int_as_float(bits), 12582912.0f); }

// kRowTiles tiles of 16 rows by kTokenTiles of 8 tokens.
template <class Format, class Tile>
struct Accumulators {
  static constexpr int kRowTiles = Tile::kWarpRows / 16, kTokenTiles = Tile::kWarpTokens / 8;
  float sums[kRowTiles][kTokenTiles][4] = {};

  // Adds one step. The warp's part of the tile starts at warp_row and warp_token.
  __device__ __forceinline__ void add(const StepBuffer<Format, Tile>& buffer, int warp_row, int warp_token) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll 1
    for (int group = 0; group < Tile::kStepGroups; ++group) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        // Tiles: rows 0..7, rows 8..15, and both again 16 bytes further on.
        load_matrices(a[i], &buffer.weights[warp_row + 16 * i + lane % 16][group * kGroupSize + lane / 16 * 16]);
      }
      float scale[kRowTiles][2][2], offset[kRowTiles][2][2];  // [..][row g or g + 8][half of the group]
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = warp_row + 16 * i + 8 * r + lane / 4;
#pragma unroll
          for (int s = 0; s < Format::kScales; ++s) {
            scale[i][r][s] = buffer.weight_scales[group][s][row];
            if constexpr (Format::kHasOffset) offset[i][r][s] = buffer.weight_offsets[group][s][row];
          }
        }
      }
      uint32_t b[4] = {};
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        if (j % 2 == 0) {
          // Tiles: tokens 0..7, 16 bytes further on, and both again for tokens 8..15.
          load_matrices(b, &buffer.activations[warp_token + 8 * j + lane % 8 + lane / 16 * 8]
                                              [group * kGroupSize + lane / 8 % 2 * 16]);
        }
        const uint32_t b0 = b[j % 2 * 2], b1 = b[j % 2 * 2 + 1];
        ActivationScale activation[2];
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          activation[t] = buffer.activation_scales[group][warp_token + 8 * j + lane % 4 * 2 + t];
        }
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          int dots[2][4];
          if constexpr (Format::kScales == 1) {
            mma_16x8x32(dots[0], a[i][0], a[i][1], a[i][2], a[i][3], b0, b1, kFloatBase);
          } else {
            mma_16x8x16(dots[0], a[i][0], a[i][1], b0, kFloatBase);
            mma_16x8x16(dots[1], a[i][2], a[i][3], b1, kFloatBase);
          }
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const float dot0 = sum_of_bits(dots[0][c]);
            const float dot1 = Format::kScales == 2 ? sum_of_bits(dots[1][c]) : 0.0f;
            const float value = scaled_dot<Format>(scale[i][c / 2], offset[i][c / 2], dot0, dot1, activation[c % 2]);
            sums[i][j][c] = __fmaf_rn(activation[c % 2].d, value, sums[i][j][c]);
          }
        }
      }
    }
  }
};

template <class Format, class Tile>
__global__ void __launch_bounds__(kTileThreads<Tile>, 2)
    ggml_mul_mat_kernel(const __grid_constant__ MatMulParams params) {
  extern __shared__ uint4 shared[];
  using Buffer = StepBuffer<Format, Tile>;
  Buffer* const buffers = reinterpret_cast<Buffer*>(shared);
  // Neighbouring blocks share their tokens: all of W passes while a few tiles of X stay in the caches.
  const int64_t row_tiles = (params.rows + Tile::kTileRows - 1) / Tile::kTileRows;
  const int64_t token_tile = blockIdx.x / row_tiles;
  const int64_t first_row = (blockIdx.x - token_tile * row_tiles) * Tile::kTileRows;
  const int64_t first_token = token_tile * Tile::kTileTokens;
  constexpr int kWarpsByTokens = Tile::kTileTokens / Tile::kWarpTokens;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int warp_row = warp / kWarpsByTokens * Tile::kWarpRows, warp_token = warp % kWarpsByTokens * Tile::kWarpTokens;
  release_successors();
  wait_for_predecessor();

  Accumulators<Format, Tile> accumulators;
  DecodedStep<Format, Tile> decoded;
  const int steps = (params.num_groups + Tile::kStepGroups - 1) / Tile::kStepGroups;
  if (steps > 0) {
    copy_activations<Format, Tile>(params, first_token, 0, buffers[0]);
    decoded.decode(params, first_row, 0);
    decoded.store(buffers[0]);
    wait_for_copies<0>();
    __syncthreads();
  }
  for (int step = 0; step < steps; ++step) {
    // What is written here was last read before the barrier that ended the step before.
    Buffer& next = buffers[(step + 1) % 2];
    const bool more = step + 1 < steps;
    if (more) {
      copy_activations<Format, Tile>(params, first_token, (step + 1) * Tile::kStepGroups, next);
      decoded.decode(params, first_row, (step + 1) * Tile::kStepGroups);
    }
    accumulators.add(buffers[step % 2], warp_row, warp_token);
    if (more) decoded.store(next);
    wait_for_copies<0>();
    __syncthreads();
  }

  // Through shared memory, so that neighbouring lanes write neighbouring rows of a token.
  constexpr int kPaddedRows = Tile::kTileRows + 4;  // the lanes of a fragment then touch all 32 banks
  static_assert(Tile::kTileTokens * kPaddedRows * sizeof(float) <= kSharedBytes<Format, Tile>);
  float* const tile = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < Accumulators<Format, Tile>::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Accumulators<Format, Tile>::kTokenTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int token = warp_token + 8 * j + lane % 4 * 2 + c % 2, row = warp_row + 16 * i + 8 * (c / 2) + lane / 4;
        tile[token * kPaddedRows + row] = accumulators.sums[i][j][c];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < Tile::kTileTokens * Tile::kTileRows; i += kTileThreads<Tile>) {
    const int token = i / Tile::kTileRows, row = i % Tile::kTileRows;
    if (first_token + token < params.num_tokens && first_row + row < params.rows) {
      store_element(params.result, params.result_dtype, (first_token + token) * params.result_stride + first_row + row,
                    tile[token * kPaddedRows + row]);
    }
  }
}

template <class Tile>
int64_t num_tiles(const MatMulParams& params) {
  return ((params.rows + Tile::kTileRows - 1) / Tile::kTileRows) *
         ((params.num_tokens + Tile::kTileTokens - 1) / Tile::kTileTokens);
}

template <class Format, class Tile>
Status launch_tiles(const MatMulParams& params, Stream stream) {
  const auto kernel = ggml_mul_mat_kernel<Format, Tile>;
  SGL_RETURN_IF_ERROR(allow_shared_memory("ggml_mul_mat_a8", kernel, kSharedBytes<Format, Tile>));
  return launch("ggml_mul_mat_a8", kernel,
                {.grid = static_cast<unsigned>(num_tiles<Tile>(params)),
                 .block = kTileThreads<Tile>,
                 .shared_bytes = kSharedBytes<Format, Tile>,
                 .pdl = true},
                stream, params);
}

template <class Format>
Status mul_mat(const MatMulParams& params, Stream stream) {
  // The large tile, once there are enough of them for every multiprocessor.
  if (params.num_tokens > SmallTile::kTileTokens && num_tiles<LargeTile>(params) >= num_sms()) {
    return launch_tiles<Format, LargeTile>(params, stream);
  }
  return launch_tiles<Format, SmallTile>(params, stream);
}

}  // namespace

Status ggml_mul_mat_a8(TensorView result, TensorView workspace, TensorView W, TensorView X, int64_t type, int64_t row,
                       Stream stream) {
  MatMulParams params = {};
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
    SGL_RETURN_IF_ERROR(launch("ggml_mul_mat_a8", ggml_quantize_activations_kernel,
                               {.grid = static_cast<unsigned>((lanes + kQuantizeThreads - 1) / kQuantizeThreads),
                                .block = kQuantizeThreads,
                                .pdl = true},
                               stream, params.X, activations_of(X), params.num_tokens, params.num_groups));
  }
  SGL_SWITCH_GGML_TYPE(type, F, return mul_mat<F>(params, stream));
  return OkStatus();  // not reached: the type was checked
}

}  // namespace sgl_kernel::SGL_TARGET
