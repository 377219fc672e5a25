// ggml_moe_a8_vec, once X is quantized.
//
// Grid: x is the pairs, y parts of the rows. A warp takes two rows of the pair's expert at a time: each lane decodes
// every 32nd group of 32 elements from global memory and multiplies (__dp4a) it with the same group of the token, whose
// bytes the cache keeps. Bound by the bytes of W for few tokens.
//
// H200, 2026-11-23, 128 experts of 3072 x 4096 and 8 for each token, weights out of memory, in a CUDA graph, without
// the quantization of X, in µs:
//   tokens        1     16
//   Q4_0       19.0    261
//   Q8_0       31.2    424
//   Q4_K       25.7    340
//   Q6_K       40.2    525
//
// Which lane adds what depends on k alone, so a pair's bits do not depend on the other pairs.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/quantization/ggml_moe.cuh"
#include "kernels/quantization/ggml_vec_group.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kWarps = 8;
constexpr int kRows = 2;  // of a warp at a time: they share what it loads of X, and are on their way together
constexpr int kRowsOfBlock = 4 * kWarps * kRows;

// sums[r] += row r times the token.
template <class Format>
__device__ __forceinline__ void multiply_rows(const ExpertsParams& params,
                                              const typename Format::Block* const (&rows)[kRows], int token,
                                              float (&sums)[kRows]) {
  for (int group = threadIdx.x % kWarpSize; group < params.num_groups; group += kWarpSize) {
    WeightGroup weights[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      Format::decode(rows[r][group / Format::kGroupsPerBlock], group % Format::kGroupsPerBlock, weights[r]);
    }
    const int64_t at = int64_t{token} * params.num_groups + group;
    const ActivationGroup x = load_group(params.X.quants + at * kGroupSize, 0, kGroupSize / 2, params.X.scales[at]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) add_group<Format>(weights[r], x, sums[r]);
  }
}

template <class Format>
__global__ void __launch_bounds__(kWarps* kWarpSize, 2)
    ggml_multiply_pairs_kernel(const __grid_constant__ ExpertsParams params) {
  using Block = typename Format::Block;
  release_successors();
  wait_for_predecessor();
  const int pair = blockIdx.x, token = pair / params.top_k;
  const int64_t expert = params.experts[pair];
  const bool has_expert = expert >= 0 && expert < params.num_experts;
  const int64_t blocks_of_row = params.num_groups / Format::kGroupsPerBlock;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int64_t part = int64_t{blockIdx.y} * kRowsOfBlock; part < params.rows;
       part += int64_t{gridDim.y} * kRowsOfBlock) {
    const int64_t end = min(part + kRowsOfBlock, params.rows);
#pragma unroll 1
    for (int64_t row = part + warp * kRows; row < end; row += kWarps * kRows) {
      float sums[kRows] = {};
      if (has_expert) {
        const Block* rows[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          // Rows past the last one repeat it, and are not stored.
          const int64_t of_expert = min(row + r, params.rows - 1);
          rows[r] = reinterpret_cast<const Block*>(params.W) + (expert * params.rows + of_expert) * blocks_of_row;
        }
        multiply_rows<Format>(params, rows, token, sums);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float sum = warp_reduce<Sum>(sums[r]);
        if (lane == 0 && row + r < params.rows) {
          store_element(params.result, params.result_dtype, pair * params.result_stride + row + r, sum);
        }
      }
    }
  }
}

template <class Format>
Status multiply(const ExpertsParams& params, Stream stream) {
  const int64_t parts = (params.rows + kRowsOfBlock - 1) / kRowsOfBlock;
  return launch(
      "ggml_moe_a8_vec", ggml_multiply_pairs_kernel<Format>,
      {.grid = dim3(static_cast<unsigned>(params.most_pairs), static_cast<unsigned>(std::min(parts, kMostGridY))),
       .block = kWarps * kWarpSize,
       .pdl = true},
      stream, params);
}

}  // namespace

Status ggml_multiply_pairs(const ExpertsParams& params, int64_t type, Stream stream) {
  SGL_SWITCH_GGML_TYPE(type, F, return multiply<F>(params, stream));
  return OkStatus();  // not reached: the type was checked
}

}  // namespace sgl_kernel::SGL_TARGET
