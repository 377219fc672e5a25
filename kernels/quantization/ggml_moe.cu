// ggml_moe_a8 and ggml_moe_a8_vec: the quantizing kernel of ggml_mul_mat_slices.cu, then one that multiplies.
//
// Grid: x is the blocks of pairs, y parts of the rows. A warp takes a row of the block's expert at a time: each lane
// decodes every 32nd group of 32 elements from global memory and multiplies (__dp4a) it with the same group of each of
// the block's tokens, whose bytes the cache keeps. Bound by the bytes of W for few tokens, and by the instructions that
// a group costs.
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

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kWarps = 8;
constexpr int kRowsOfWarp = 4;
constexpr int kRowsOfBlock = kWarps * kRowsOfWarp;

struct ExpertsParams : MatMulParams {
  const int32_t* pairs;  // see ExpertsCall
  const int32_t* num_pairs;
  const int32_t* experts;
  int64_t most_pairs;
  int64_t num_experts;
  int top_k;
};

// sums[i] += row times token i. Tokens that are none are any others.
template <class Format, int kPairs>
__device__ __forceinline__ void multiply_row(const ExpertsParams& params, const typename Format::Block* blocks,
                                             const int (&tokens)[kPairs], float (&sums)[kPairs]) {
  constexpr int kWords = kGroupSize / 4;
  for (int group = threadIdx.x % kWarpSize; group < params.num_groups; group += kWarpSize) {
    WeightGroup weights;
    Format::decode(blocks[group / Format::kGroupsPerBlock], group % Format::kGroupsPerBlock, weights);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int64_t at = int64_t{tokens[i]} * params.num_groups + group;
      const uint4* const quants = reinterpret_cast<const uint4*>(params.X.quants + at * kGroupSize);
      const uint4 x[2] = {quants[0], quants[1]};
      const uint32_t words[kWords] = {x[0].x, x[0].y, x[0].z, x[0].w, x[1].x, x[1].y, x[1].z, x[1].w};
      const ActivationScale scale = params.X.scales[at];
      int dots[2] = {0, 0};
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        int& dot = dots[Format::kScales == 2 ? w / (kWords / 2) : 0];
        dot = __dp4a(static_cast<int>(weights.quants[w]), static_cast<int>(words[w]), dot);
      }
      const float value = scaled_dot<Format>(weights.scale, weights.offset, static_cast<float>(dots[0]),
                                             static_cast<float>(dots[1]), scale);
      sums[i] = __fmaf_rn(scale.d, value, sums[i]);
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
#pragma unroll 1
    for (int i = 0; i < kRowsOfWarp; ++i) {
      const int64_t row = part + i * kWarps + warp;
      if (row >= params.rows) break;
      float sums[kPairs] = {};
      if (has_expert) {
        const Block* const W = reinterpret_cast<const Block*>(params.W);
        multiply_row<Format>(params, W + (expert * params.rows + row) * blocks_of_row, tokens, sums);
      }
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        const float sum = warp_reduce<Sum>(sums[p]);
        if (lane == p && is_pair[p]) {
          store_element(params.result, params.result_dtype, pairs[p] * params.result_stride + row, sum);
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
