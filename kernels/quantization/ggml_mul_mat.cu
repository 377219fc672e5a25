// ggml_mul_mat_a8: a first small kernel quantizes X into the workspace, a second one multiplies on the tensor cores.
// For few tokens, or few rows, that is ggml_mul_mat_slices.cu's, else this one.
//
// A block computes a tile of kTileRows rows of W by kTileTokens tokens, 8 warps of 32 by 32. In each step over k it
// decodes kStepGroups groups of its rows from the blocks of W in global memory to signed bytes in shared memory, while
// X's bytes are copied there, one step ahead of the products. The integer sums of a group of 32 become floats and are
// scaled at once, since every group has scales of its own: that, in the float units, is what bounds it.
//
// H200, 2026-11-23, 9216 x 4096, 1024 tokens: Q4_0 in 578 µs (134 TFLOP/s), Q4_K in 856 (90), Q8_0 in 666 (116). But
// what is built for Hopper has ggml_mul_mat_sm90a.cu in place of this file.
#include "kernels/base/launch.h"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/mma_int8.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/ggml_decode.cuh"
#include "kernels/quantization/ggml_mul_mat.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kTileRows = 128, kTileTokens = 64, kWarpRows = 32, kWarpTokens = 32;
constexpr int kThreads = kTileRows / kWarpRows * (kTileTokens / kWarpTokens) * kWarpSize;
constexpr int kStepGroups = 4;
constexpr int kSliceSteps = kSliceGroups / kStepGroups;

// One of the two buffers in shared memory.
template <class Format>
struct alignas(16) StepBuffer {
  static constexpr int kStepBytes = kStepGroups * kGroupSize;
  // 16 bytes of padding put the 8 rows that a matrix load reads at once into different banks.
  uint8_t weights[kTileRows][kStepBytes + 16];
  uint8_t activations[kTileTokens][kStepBytes + 16];
  ActivationScale activation_scales[kStepGroups][kTileTokens];
  float weight_scales[kStepGroups][Format::kScales][kTileRows];
  float weight_offsets[Format::kHasOffset ? kStepGroups : 1][Format::kScales][kTileRows];
};

template <class Format>
constexpr int kSharedBytes = 2 * sizeof(StepBuffer<Format>);

// Copies kStepGroups groups of the tile's tokens; zeros where there is no such token or group.
template <class Format>
__device__ __forceinline__ void copy_activations(const MatMulParams& params, int64_t first_token, int first_group,
                                                 StepBuffer<Format>& buffer) {
  constexpr int kPieces = kStepGroups * 2;  // of 16 bytes in a token's step
  for (int i = threadIdx.x; i < kTileTokens * kPieces; i += kThreads) {
    const int token = i / kPieces, piece = i % kPieces;
    const bool present = first_token + token < params.num_tokens && first_group + piece / 2 < params.num_groups;
    const int64_t at =
        (first_token + token) * params.num_groups * kGroupSize + int64_t{first_group} * kGroupSize + piece * 16;
    copy_async<16>(&buffer.activations[token][piece * 16], params.X.quants + (present ? at : 0), present ? 16 : 0);
  }
  for (int i = threadIdx.x; i < kTileTokens * kStepGroups; i += kThreads) {
    const int token = i / kStepGroups, group = i % kStepGroups;
    const bool present = first_token + token < params.num_tokens && first_group + group < params.num_groups;
    const int64_t at = (first_token + token) * params.num_groups + first_group + group;
    copy_async<8>(&buffer.activation_scales[group][token], params.X.scales + (present ? at : 0), present ? 8 : 0);
  }
  commit_copies();
}

// The groups that a thread decodes in a step, held in registers while the products of the step before are made.
template <class Format>
struct DecodedStep {
  static constexpr int kGroups = kTileRows * kStepGroups / kThreads;
  static_assert(kGroups * kThreads == kTileRows * kStepGroups);
  WeightGroup groups[kGroups];

  __device__ __forceinline__ void decode(const MatMulParams& params, int64_t first_row, int first_group) {
    using Block = typename Format::Block;
    const int blocks_per_row = params.num_groups / Format::kGroupsPerBlock;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int task = i * kThreads + threadIdx.x;
      const int64_t row = first_row + task / kStepGroups;
      const int group = first_group + task % kStepGroups;
      groups[i] = {};
      if (row >= params.rows || group >= params.num_groups) continue;
      const Block* blocks = reinterpret_cast<const Block*>(params.W) + row * blocks_per_row;
      const Block* block = blocks + group / Format::kGroupsPerBlock;
      if (group + 2 * kStepGroups < params.num_groups) {
        prefetch_to_l2(blocks + (group + 2 * kStepGroups) / Format::kGroupsPerBlock);
      }
      Format::decode(*block, group % Format::kGroupsPerBlock, groups[i]);
    }
  }

  __device__ __forceinline__ void store(StepBuffer<Format>& buffer) const {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int task = i * kThreads + threadIdx.x;
      const int row = task / kStepGroups, group = task % kStepGroups;
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

// kRowTiles tiles of 16 rows by kTokenTiles of 8 tokens.
template <class Format>
struct Accumulators {
  static constexpr int kRowTiles = kWarpRows / 16, kTokenTiles = kWarpTokens / 8;
  float sums[kRowTiles][kTokenTiles][4] = {};    // of this slice so far
  float totals[kRowTiles][kTokenTiles][4] = {};  // of the slices before

  __device__ __forceinline__ void end_slice() {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          totals[i][j][c] += sums[i][j][c];
          sums[i][j][c] = 0.0f;
        }
      }
    }
  }

  // Adds one step. The warp's part of the tile starts at warp_row and warp_token.
  __device__ __forceinline__ void add(const StepBuffer<Format>& buffer, int warp_row, int warp_token) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll 1
    for (int group = 0; group < kStepGroups; ++group) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        // Tiles: rows 0..7, rows 8..15, and both again 16 bytes further on.
        load_matrices(a[i], &buffer.weights[warp_row + 16 * i + lane % 16][group * kGroupSize + lane / 16 * 16]);
      }
      RowScale<Format> scales[kRowTiles][2];  // of row g and of row g + 8
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = warp_row + 16 * i + 8 * r + lane / 4;
#pragma unroll
          for (int s = 0; s < Format::kScales; ++s) {
            scales[i][r].scale[s] = buffer.weight_scales[group][s][row];
            if constexpr (Format::kHasOffset) scales[i][r].offset[s] = buffer.weight_offsets[group][s][row];
          }
          scales[i][r].set_base();
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
        float x_scale[2], x_sums[2][2];  // [token]
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          const ActivationScale& x = buffer.activation_scales[group][warp_token + 8 * j + lane % 4 * 2 + t];
          x_scale[t] = x.d;
          sums_of<Format>(x, x_sums[t]);
        }
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          int dots[2][4];
          if constexpr (Format::kScales == 1) {
            mma_16x8x32(dots[0], a[i][0], a[i][1], a[i][2], a[i][3], b0, b1, kFloatBaseBits);
          } else {
            mma_16x8x16(dots[0], a[i][0], a[i][1], b0, kFloatBaseBits);
            mma_16x8x16(dots[1], a[i][2], a[i][3], b1, kFloatBaseBits);
          }
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int dot1 = Format::kScales == 2 ? dots[1][c] : 0;
            const float value = scaled_sum<Format>(scales[i][c / 2], dots[0][c], dot1, x_sums[c % 2]);
            sums[i][j][c] = __fmaf_rn(x_scale[c % 2], value, sums[i][j][c]);
          }
        }
      }
    }
  }
};

template <class Format>
__global__ void __launch_bounds__(kThreads, 2) ggml_mul_mat_kernel(const __grid_constant__ MatMulParams params) {
  extern __shared__ uint4 shared[];
  using Buffer = StepBuffer<Format>;
  Buffer* const buffers = reinterpret_cast<Buffer*>(shared);
  // Neighbouring blocks share their tokens: all of W passes while a few tiles of X stay in the caches.
  const int64_t row_tiles = (params.rows + kTileRows - 1) / kTileRows;
  const int64_t token_tile = blockIdx.x / row_tiles;
  const int64_t first_row = (blockIdx.x - token_tile * row_tiles) * kTileRows;
  const int64_t first_token = token_tile * kTileTokens;
  constexpr int kWarpsByTokens = kTileTokens / kWarpTokens;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int warp_row = warp / kWarpsByTokens * kWarpRows, warp_token = warp % kWarpsByTokens * kWarpTokens;
  release_successors();
  wait_for_predecessor();

  Accumulators<Format> accumulators;
  DecodedStep<Format> decoded;
  const int steps = (params.num_groups + kStepGroups - 1) / kStepGroups;
  if (steps > 0) {
    copy_activations<Format>(params, first_token, 0, buffers[0]);
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
      copy_activations<Format>(params, first_token, (step + 1) * kStepGroups, next);
      decoded.decode(params, first_row, (step + 1) * kStepGroups);
    }
    accumulators.add(buffers[step % 2], warp_row, warp_token);
    if (!more || (step + 1) % kSliceSteps == 0) accumulators.end_slice();
    if (more) decoded.store(next);
    wait_for_copies<0>();
    __syncthreads();
  }

  // Through shared memory, so that neighbouring lanes write neighbouring rows of a token.
  constexpr int kPaddedRows = kTileRows + 4;  // the lanes of a fragment then touch all 32 banks
  static_assert(kTileTokens * kPaddedRows * sizeof(float) <= kSharedBytes<Format>);
  float* const tile = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < Accumulators<Format>::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Accumulators<Format>::kTokenTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int token = warp_token + 8 * j + lane % 4 * 2 + c % 2, row = warp_row + 16 * i + 8 * (c / 2) + lane / 4;
        tile[token * kPaddedRows + row] = accumulators.totals[i][j][c];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTileTokens * kTileRows; i += kThreads) {
    const int token = i / kTileRows, row = i % kTileRows;
    if (first_token + token < params.num_tokens && first_row + row < params.rows) {
      store_element(params.result, params.result_dtype, (first_token + token) * params.result_stride + first_row + row,
                    tile[token * kPaddedRows + row]);
    }
  }
}

int64_t num_tiles(const MatMulParams& params) {
  return ((params.rows + kTileRows - 1) / kTileRows) * ((params.num_tokens + kTileTokens - 1) / kTileTokens);
}

template <class Format>
Status mul_mat(const MatMulParams& params, Stream stream) {
  const auto kernel = ggml_mul_mat_kernel<Format>;
  SGL_RETURN_IF_ERROR(allow_shared_memory("ggml_mul_mat_a8", kernel, kSharedBytes<Format>));
  return launch("ggml_mul_mat_a8", kernel,
                {.grid = static_cast<unsigned>(num_tiles(params)),
                 .block = kThreads,
                 .shared_bytes = kSharedBytes<Format>,
                 .pdl = true},
                stream, params);
}

}  // namespace

Status ggml_mul_mat_a8(TensorView result, TensorView workspace, TensorView W, TensorView X, int64_t type, int64_t row,
                       Stream stream) {
  MatMulParams params = {};
  SGL_RETURN_IF_ERROR(ggml_prepare_mul_mat("ggml_mul_mat_a8", params, result, workspace, W, X, row, stream));
  // Here, once there are enough tiles for every multiprocessor.
  constexpr int64_t kFewTokens = 32;
  if (params.num_tokens <= kFewTokens || num_tiles(params) < num_sms()) {
    return ggml_mul_mat_slices(params, type, stream);
  }
  SGL_SWITCH_GGML_TYPE(type, F, return mul_mat<F>(params, stream));
  return OkStatus();  // not reached: the type was checked
}

}  // namespace sgl_kernel::SGL_TARGET
