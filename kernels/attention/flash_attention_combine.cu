// Step 3 of attention with split keys, whose partial results are called splits here: bound by the reads of the partial
// outputs, which come from the L2.
//
//   lse = log(sum_s exp(lse_s) + exp(sink)),   out = sum_s exp(lse_s - lse) out_s
//
// One block a query row of one head. Warp w sums the splits w, w + 8, …; then the warps are added in order, so the bits
// depend on num_partials alone.
#include "kernels/attention/flash_attention_mma.cuh"
#include "kernels/attention/flash_attention_portable.h"
#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kWarps = 8;
constexpr int kAtOnce = 4;  // splits whose loads a warp has under way

// A lane holds columns 4 lane … 4 lane + 3, and those 128 further on, up to kMaxHeadDim.
template <class T, int kMaxHeadDim>
__global__ void __launch_bounds__(kWarps* kWarp) combine_splits_kernel(const __grid_constant__ AttentionParams params) {
  __shared__ float weights[kMaxSplits];
  __shared__ float sums[kWarps][kMaxHeadDim];
  constexpr int kLaneColumns = kMaxHeadDim / kWarp;
  wait_for_predecessor();
  release_successors();
  int index = blockIdx.x;
  const int token = index % params.seqlen_q;
  index /= params.seqlen_q;
  const PackedRow row = {token, index % params.num_heads};
  const int batch = index / params.num_heads;
  const AttentionSequence sequence = sequence_of(params, batch);
  if (token >= sequence.q_len) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;

  // Each warp finds the total by itself: fewer barriers than sharing it.
  const float* lse_accum = params.lse_accum + lse_accum_index(params, sequence, batch, 0, row);
  float top = negative_infinity();
  float lse[kMaxSplits / kWarp];
#pragma unroll
  for (int i = 0; i < kMaxSplits / kWarp; ++i) {
    const int split = i * kWarp + lane;
    lse[i] = split < params.num_partials ? lse_accum[split * params.lse_accum_split_stride] : negative_infinity();
    top = fmaxf(top, lse[i]);
  }
  const float sink = sink_of(params, row.head);
  top = fmaxf(warp_reduce<Max>(top), sink);
  // With nothing to see every weight is 0. (Max's identity is finite, so compare with <=.)
  const bool sees_nothing = top <= Max::kIdentity;
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxSplits / kWarp; ++i) {
    lse[i] = sees_nothing ? 0.0f : exp2_approx((lse[i] - top) * kLog2E);
    total += lse[i];
  }
  total = warp_reduce<Sum>(total) + (sees_nothing ? 0.0f : exp2_approx((sink - top) * kLog2E));
  const float factor = sees_nothing ? 0.0f : 1.0f / total;
  if (warp == 0) {
#pragma unroll
    for (int i = 0; i < kMaxSplits / kWarp; ++i) weights[i * kWarp + lane] = lse[i] * factor;
    if (lane == 0) {
      params.lse[lse_index(params, sequence, batch, row)] =
          sees_nothing ? negative_infinity() : top + log2f(total) * kLn2;
    }
  }
  __syncthreads();

  const float* out_accum = params.out_accum + out_accum_index(params, sequence, batch, 0, row);
  float output[kLaneColumns] = {};
  for (int first = warp; first < params.num_partials; first += kWarps * kAtOnce) {
    float weight[kAtOnce];
    float4 parts[kAtOnce][kLaneColumns / 4] = {};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int split = first + i * kWarps;
      weight[i] = split < params.num_partials ? weights[split] : 0.0f;
#pragma unroll
      for (int part = 0; part < kLaneColumns / 4; ++part) {
        const int column = part * 4 * kWarp + lane * 4;
        // A split of weight 0 may have seen no key and written no output.
        if (weight[i] == 0.0f || column >= params.head_dim_v) continue;
        parts[i][part] = *reinterpret_cast<const float4*>(out_accum + split * params.out_accum_split_stride + column);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int part = 0; part < kLaneColumns / 4; ++part) {
        output[part * 4] += weight[i] * parts[i][part].x;
        output[part * 4 + 1] += weight[i] * parts[i][part].y;
        output[part * 4 + 2] += weight[i] * parts[i][part].z;
        output[part * 4 + 3] += weight[i] * parts[i][part].w;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kLaneColumns; i += 4) {
    *reinterpret_cast<float4*>(&sums[warp][i * kWarp + lane * 4]) =
        make_float4(output[i], output[i + 1], output[i + 2], output[i + 3]);
  }
  __syncthreads();
  T* out = static_cast<T*>(params.out) + out_index(params, sequence, batch, row);
  for (int column = 2 * threadIdx.x; column < params.head_dim_v; column += 2 * kWarps * kWarp) {
    float first = 0.0f, second = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      first += sums[w][column];
      second += sums[w][column + 1];
    }
    *reinterpret_cast<uint32_t*>(out + column) = pack<T>(first, second);
  }
}

template <int kMaxHeadDim>
auto kernel_of(const AttentionParams& params) {
  return params.dtype == DType::kF16 ? combine_splits_kernel<__half, kMaxHeadDim>
                                     : combine_splits_kernel<__nv_bfloat16, kMaxHeadDim>;
}

}  // namespace

Status combine_splits(const AttentionParams& params, Stream stream) {
  const int64_t blocks = static_cast<int64_t>(params.seqlen_q) * params.num_heads * params.batch;
  if (blocks > INT32_MAX) return Unsupported("fwd: batch * heads * queries is above 2^31 blocks");
  const auto kernel = params.head_dim_v <= kMostNarrowValues ? kernel_of<kMostNarrowValues>(params)
                                                             : kernel_of<kMostWideValues>(params);
  return launch("fwd", kernel, {.grid = dim3(static_cast<unsigned>(blocks)), .block = kWarps * kWarp, .pdl = true},
                stream, params);
}

}  // namespace sgl_kernel::SGL_TARGET
