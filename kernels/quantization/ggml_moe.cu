// ggml_moe_a8 and ggml_moe_a8_vec: the quantizing kernel of ggml_mul_mat_slices.cu, then one that multiplies.
//
// Grid: x is the blocks of pairs, y parts of the rows. A warp takes two rows of the block's expert at a time: each lane
// decodes every 32nd group of 32 elements from global memory and multiplies (__dp4a) it with the same group of each of
// the block's tokens, whose bytes the cache keeps. Bound by the bytes of W for few tokens, and by the latency and the
// instructions of a group for many: each block of pairs decodes W anew.
//
// H200, 2026-11-23, 128 experts of 3072 x 4096 and 8 for each token, weights out of memory, in a CUDA graph, without
// the quantization of X, in µs:
//   tokens                   1     16    256
//                          _vec   _vec    _a8
//   Q4_0                   19.0    261   2065
//   Q8_0                   31.2    424   2303
//   Q4_K                   25.7    340   2411
//   Q6_K                   40.2    525   2727
//
// Which lane adds what depends on k alone, so a pair's bits do not depend on the other pairs.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/ggml_decode.cuh"
#include "kernels/quantization/ggml_mul_mat.cuh"
#include "kernels/quantization/ggml_params.h"
#include "kernels/quantization/ggml_vec_group.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kWarps = 8;
constexpr int kRows = 2;  // of a warp at a time: they share what it loads of X, and are on their way together
constexpr int kRowsOfBlock = 4 * kWarps * kRows;

struct ExpertsParams : MatMulParams {
  const int32_t* pairs;  // see ExpertsCall
  const int32_t* num_pairs;
  const int32_t* experts;
  int64_t most_pairs;
  int64_t num_experts;
  int top_k;
};

// sums[r][i] += row r times token i. Tokens that are none are any others.
template <class Format, int kPairs>
__device__ __forceinline__ void multiply_rows(const ExpertsParams& params,
                                              const typename Format::Block* const (&rows)[kRows],
                                              const int (&tokens)[kPairs], float (&sums)[kRows][kPairs]) {
  for (int group = threadIdx.x % kWarpSize; group < params.num_groups; group += kWarpSize) {
    WeightGroup weights[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      Format::decode(rows[r][group / Format::kGroupsPerBlock], group % Format::kGroupsPerBlock, weights[r]);
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int64_t at = int64_t{tokens[i]} * params.num_groups + group;
      const ActivationGroup x = load_group(params.X.quants + at * kGroupSize, 0, kGroupSize / 2, params.X.scales[at]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) add_group<Format>(weights[r], x, sums[r][i]);
    }
  }
}

// kPairs: of a block of pairs.
template <class Format, int kPairs>
__global__ void __launch_bounds__(kWarps* kWarpSize, 2)
    ggml_multiply_experts_kernel(const __grid_constant__ ExpertsParams params) {
  using Block = typename Format::Block;
  release_successors();
  wait_for_predecessor();
  const int64_t num_pairs =
      params.num_pairs == nullptr ? params.most_pairs : min(int64_t{*params.num_pairs}, params.most_pairs);
  const int64_t first = int64_t{blockIdx.x} * kPairs;
  if (first >= num_pairs) return;
  const int64_t real_pairs = params.num_tokens * params.top_k;
  int pairs[kPairs], tokens[kPairs];
  bool is_pair[kPairs], any = false;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    is_pair[i] = first + i < num_pairs;
    pairs[i] = !is_pair[i] ? 0 : params.pairs == nullptr ? static_cast<int>(first + i) : params.pairs[first + i];
    is_pair[i] = is_pair[i] && pairs[i] >= 0 && pairs[i] < real_pairs;
    tokens[i] = is_pair[i] ? pairs[i] / params.top_k : 0;
    any = any || is_pair[i];
  }
  if (!any) return;
  const int64_t expert = params.experts[blockIdx.x];
  const bool has_expert = expert >= 0 && expert < params.num_experts;
  const int64_t blocks_of_row = params.num_groups / Format::kGroupsPerBlock;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int64_t part = int64_t{blockIdx.y} * kRowsOfBlock; part < params.rows;
       part += int64_t{gridDim.y} * kRowsOfBlock) {
    const int64_t end = min(part + kRowsOfBlock, params.rows);
#pragma unroll 1
    for (int64_t row = part + warp * kRows; row < end; row += kWarps * kRows) {
      float sums[kRows][kPairs] = {};
      if (has_expert) {
        const Block* rows[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          // Rows past the last one repeat it, and are not stored.
          const int64_t of_expert = min(row + r, params.rows - 1);
          rows[r] = reinterpret_cast<const Block*>(params.W) + (expert * params.rows + of_expert) * blocks_of_row;
        }
        multiply_rows<Format>(params, rows, tokens, sums);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          const float sum = warp_reduce<Sum>(sums[r][i]);
          if (lane == i && is_pair[i] && row + r < params.rows) {
            store_element(params.result, params.result_dtype, pairs[i] * params.result_stride + row + r, sum);
          }
        }
      }
    }
  }
}

template <class Format, int kPairs>
Status launch_blocks(const char* name, const ExpertsParams& params, Stream stream) {
  constexpr int64_t kMostY = 65535;  // of a grid
  const int64_t blocks = (params.most_pairs + kPairs - 1) / kPairs;
  const int64_t parts = (params.rows + kRowsOfBlock - 1) / kRowsOfBlock;
  return launch(name, ggml_multiply_experts_kernel<Format, kPairs>,
                {.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(std::min(parts, kMostY))),
                 .block = kWarps * kWarpSize,
                 .pdl = true},
                stream, params);
}

template <class Format>
Status multiply_experts(const ExpertsCall& call, const ExpertsParams& params, Stream stream) {
  return call.block == 1 ? launch_blocks<Format, 1>(call.operator_name, params, stream)
                         : launch_blocks<Format, kGgmlMoeBlock>(call.operator_name, params, stream);
}

}  // namespace

Status ggml_multiply_experts(const ExpertsCall& call, Stream stream) {
  ExpertsParams params = {};
  SGL_RETURN_IF_ERROR(
      ggml_prepare_mul_mat(params, call.result, call.workspace, call.W, call.X, call.W.size(1), stream));
  params.pairs = call.pairs;
  params.num_pairs = call.num_pairs;
  params.experts = call.experts;
  params.most_pairs = call.most_pairs;
  params.num_experts = call.W.size(0);
  params.top_k = static_cast<int>(call.top_k);
  SGL_SWITCH_GGML_TYPE(call.type, F, return multiply_experts<F>(call, params, stream));
  return OkStatus();  // not reached: the type was checked
}

}  // namespace sgl_kernel::SGL_TARGET
