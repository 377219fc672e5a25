// What all CUDA attention kernels share: which row is which, and how a finished one is written.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/attention/flash_attention_params.h"

namespace sgl_kernel::SGL_TARGET {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float negative_infinity() { return __int_as_float(0xff800000); }

// 2^x; exact 0 for -infinity.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two floats, rounded, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack(float first, float second) {
  uint32_t packed;
  if constexpr (sizeof(T) == 2 && __is_same(T, __half)) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
  }
  return packed;
}

// Rows of a tile are numbered token * group + head, over the query heads that share a KV head.
struct PackedRow {
  int token, head;
};
__device__ __forceinline__ PackedRow unpack_row(int row, int group, int kv_head) {
  const int token = row / group;
  return {token, kv_head * group + row - token * group};
}

// The logit of a head's sink; -infinity without sinks.
__device__ __forceinline__ float sink_of(const AttentionParams& params, int head) {
  if (params.sinks == nullptr) return negative_infinity();
  switch (params.sinks_dtype) {
    case DType::kF16:
      return __half2float(static_cast<const __half*>(params.sinks)[head]);
    case DType::kBF16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(params.sinks)[head]);
    default:
      return static_cast<const float*>(params.sinks)[head];
  }
}

// What is left to do for a row whose keys are all seen: `max` and `sum` are of its softmax. The output is to be
// multiplied by `factor`.
struct RowEnd {
  float factor, lse;
};

// A split leaves out the sink: combine_splits() adds it once.
__device__ __forceinline__ RowEnd end_row(float max, float sum, float log2_per_unit, float sink) {
  const float log2_max = max * log2_per_unit, log2_sink = sink * kLog2E;
  const float top = fmaxf(log2_max, log2_sink);
  if (top == negative_infinity()) return {0.0f, negative_infinity()};  // sees nothing
  const float scaled = exp2_approx(log2_max - top);
  const float total = sum * scaled + exp2_approx(log2_sink - top);
  return {scaled / total, (top + log2f(total)) * kLn2};
}

__device__ __forceinline__ int64_t lse_index(const AttentionParams& params, const AttentionSequence& sequence,
                                             int batch, PackedRow row) {
  return batch * params.lse_batch_stride + row.head * params.lse_head_stride + sequence.q_start + row.token;
}

__device__ __forceinline__ int64_t lse_accum_index(const AttentionParams& params, const AttentionSequence& sequence,
                                                   int batch, int split, PackedRow row) {
  return split * params.lse_accum_split_stride + batch * params.lse_accum_batch_stride +
         row.head * params.lse_accum_head_stride + sequence.q_start + row.token;
}

__device__ __forceinline__ int64_t out_index(const AttentionParams& params, const AttentionSequence& sequence,
                                             int batch, PackedRow row) {
  return batch * params.out_batch_stride + (sequence.q_start + row.token) * params.out_row_stride +
         row.head * params.out_head_stride;
}

__device__ __forceinline__ int64_t out_accum_index(const AttentionParams& params, const AttentionSequence& sequence,
                                                   int batch, int split, PackedRow row) {
  return split * params.out_accum_split_stride + batch * params.out_accum_batch_stride +
         row.head * params.out_accum_head_stride + (sequence.q_start + row.token) * params.head_dim_v;
}

}  // namespace sgl_kernel::SGL_TARGET
