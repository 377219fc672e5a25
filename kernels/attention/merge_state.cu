// Merging two attention states: memory-bound, two vectors read for one written. A thread merges a vector (16 bytes, or
// one element where alignment or head_dim allow no more) of a token's heads, which lie side by side in the grid, see
// device/row_grid.cuh. Every thread computes its head's two weights itself: two loads that its warp shares.
//
// H200, 2026-11-23, bf16, 16 heads of 128: 1.0, 2.0 and 4.8 µs for 1, 128 and 1024 tokens; 4.0 TB/s for 8192 (102 MB),
// where a mere sum of the same vectors runs at 4.15. Two and four tokens a thread are slower, and so are two vectors.
#include <limits>

#include "kernels/attention/merge_state_params.h"
#include "kernels/base/launch.h"
#include "kernels/device/dtype_switch.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/row_grid.cuh"
#include "kernels/device/vec.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr float kEmpty = -std::numeric_limits<float>::infinity();

template <class T>
__device__ __forceinline__ T* at(const PerHead& tensor, int64_t token, int64_t head) {
  return static_cast<T*>(tensor.data) + token * tensor.stride + head * tensor.head_stride;
}

struct Weights {
  float a, b;
  float s_merged;
};

// per_log2 is 1 / log2_base. The sum is at least 1: no division needs more than the reciprocal.
__device__ __forceinline__ Weights weights_of(float s_a, float s_b, float log2_base, float per_log2) {
  if (isinf(s_a)) s_a = kEmpty;
  if (isinf(s_b)) s_b = kEmpty;
  const float largest = fmaxf(s_a, s_b);
  if (largest == kEmpty) return {0.0f, 0.0f, kEmpty};
  const float power_a = exp2f((s_a - largest) * log2_base), power_b = exp2f((s_b - largest) * log2_base);
  const float sum = power_a + power_b, per_sum = __fdividef(1.0f, sum);
  return {power_a * per_sum, power_b * per_sum, largest + __log2f(sum) * per_log2};
}

// A weight of 0 hides even NaN.
template <class T, int kVec>
__device__ __forceinline__ Vec<T, kVec> merge(const Weights& weights, Vec<T, kVec> a, Vec<T, kVec> b) {
  if (weights.a == 0.0f) a = {};
  if (weights.b == 0.0f) b = {};
  hold_packed(a);
  hold_packed(b);
  Vec<T, kVec> merged;
#pragma unroll
  for (int j = 0; j < kVec; ++j) merged[j] = from_float<T>(fmaf(weights.a, to_float(a[j]), weights.b * to_float(b[j])));
  hold_packed(merged);
  return merged;
}

template <class T, int kVec>
__global__ void __launch_bounds__(kRowGridThreads)
    merge_state_kernel(const __grid_constant__ MergeStateParams params, uint32_t vecs_per_head, float per_log2) {
  wait_for_predecessor();
  release_successors();
  const uint32_t vec = static_cast<uint32_t>(row_vec()), head = vec / vecs_per_head;
  if (head >= params.num_heads) return;
  const uint32_t column = (vec - head * vecs_per_head) * kVec;
  for (RowRange<1> tokens(params.num_tokens); tokens.more(); tokens.advance()) {
    const int64_t token = tokens.at(0);
    const auto a = Vec<T, kVec>::load(at<const T>(params.v_a, token, head) + column);
    const auto b = Vec<T, kVec>::load(at<const T>(params.v_b, token, head) + column);
    const float s_a = *at<const float>(params.s_a, token, head), s_b = *at<const float>(params.s_b, token, head);
    const Weights weights = weights_of(s_a, s_b, params.log2_base, per_log2);
    merge(weights, a, b).store(at<T>(params.v_merged, token, head) + column);
    if (column == 0) *at<float>(params.s_merged, token, head) = weights.s_merged;
  }
}

template <class T, int kVec>
Status launch_vecs(const MergeStateParams& params, Stream stream) {
  const int64_t vecs_per_head = (params.head_dim + kVec - 1) / kVec;
  const RowGrid shape = row_grid(params.num_heads * vecs_per_head, params.num_tokens, /*rows_per_thread=*/1);
  return launch(params.operator_name, merge_state_kernel<T, kVec>,
                {.grid = shape.grid, .block = shape.block, .pdl = true}, stream, params,
                static_cast<uint32_t>(vecs_per_head), 1.0f / params.log2_base);
}

template <class T>
Status run(const MergeStateParams& params, Stream stream) {
  constexpr int kVec = kVecSize<T>;
  bool wide = params.head_dim % kVec == 0;
  for (const PerHead* v : {&params.v_a, &params.v_b, &params.v_merged}) {
    wide =
        wide && reinterpret_cast<uintptr_t>(v->data) % 16 == 0 && v->stride % kVec == 0 && v->head_stride % kVec == 0;
  }
  return wide ? launch_vecs<T, kVec>(params, stream) : launch_vecs<T, 1>(params, stream);
}

}  // namespace

Status merge_states(const MergeStateParams& params, Stream stream) {
  SGL_SWITCH_FLOAT(params.dtype, T, return run<T>(params, stream));
}

}  // namespace sgl_kernel::SGL_TARGET
