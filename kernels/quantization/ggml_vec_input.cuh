// What ggml_mul_mat_vec multiplies, eight elements at a time: X, or what it makes of it (ggml.h).
#pragma once

#include "kernels/device/gate.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/quantization/ggml_activations.cuh"
#include "kernels/quantization/ggml_params.h"

namespace sgl_kernel::SGL_TARGET {

struct Rows {
  void* data;
  int64_t stride;  // elements
};

struct VecInputParams {
  Activations X;  // `vectors` speaks for the others as well
  VecInput input;
  int k;
  Rows residual;
  Rows residual_sum;
  const void* norm_weight;
  float eps;
};

inline VecInputParams vec_input_of(const MatVecCall& call) {
  VecInputParams params = {.X = activations_of(call.X), .input = call.input, .k = static_cast<int>(call.k)};
  if (call.input == VecInput::kAddRmsnorm) {
    params.residual = {call.residual.data(), call.residual.stride(0)};
    params.residual_sum = {call.residual_sum.data(), call.residual_sum.stride(0)};
    params.norm_weight = call.norm_weight.data();
    params.eps = call.eps;
    params.X.vectors = params.X.vectors && activations_of(call.residual).vectors &&
                       activations_of(call.residual_sum).vectors &&
                       reinterpret_cast<uintptr_t>(params.norm_weight) % 16 == 0;
  }
  return params;
}

// The input from token `first` on.
inline VecInputParams from_token(VecInputParams params, int64_t first) {
  const int64_t element_bytes = size_of(params.X.dtype);
  params.X.data = static_cast<const char*>(params.X.data) + first * params.X.row_stride * element_bytes;
  for (Rows* rows : {&params.residual, &params.residual_sum}) {
    if (rows->data != nullptr) rows->data = static_cast<char*>(rows->data) + first * rows->stride * element_bytes;
  }
  return params;
}

template <class T>
__device__ __forceinline__ float rounded(float value) {
  return to_float(from_float<T>(value));
}

// X + residual, rounded.
template <class T>
__device__ __forceinline__ void load_residual_sum(const VecInputParams& params, int token, int index, float (&x)[8]) {
  float residual[8];
  load_eight<T>(params.X.data, token * params.X.row_stride + index, params.X.vectors, x);
  load_eight<T>(params.residual.data, token * params.residual.stride + index, params.X.vectors, residual);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = rounded<T>(x[i] + residual[i]);
}

template <class T>
__device__ __forceinline__ void load_input(const VecInputParams& params, int token, int index, float (&x)[8]) {
  if (params.input == VecInput::kAddRmsnorm) {
    float weight[8];
    load_eight<T>(params.norm_weight, index, params.X.vectors, weight);
    load_residual_sum<T>(params, token, index, x);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] *= weight[i];
    return;
  }
  const int64_t at = token * params.X.row_stride + index;
  load_eight<T>(params.X.data, at, params.X.vectors, x);
  if (params.input == VecInput::kSiluAndMul) {
    float up[8];
    load_eight<T>(params.X.data, at + params.k, params.X.vectors, up);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = rounded<T>(gate<T>(x[i], x[i]) * up[i]);
  }
}

// Elements index .. index + 7 of a row; of kAddRmsnorm before scale_input().
__device__ __forceinline__ void load_input(const VecInputParams& params, int token, int index, float (&x)[8]) {
  if (params.X.dtype == DType::kF16) {
    load_input<__half>(params, token, index, x);
  } else if (params.X.dtype == DType::kBF16) {
    load_input<__nv_bfloat16>(params, token, index, x);
  } else {
    load_input<float>(params, token, index, x);
  }
}

__device__ __forceinline__ void scale_input(const VecInputParams& params, float scale, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    x[i] *= scale;
    if (params.X.dtype == DType::kF16) {
      x[i] = rounded<__half>(x[i]);
    } else if (params.X.dtype == DType::kBF16) {
      x[i] = rounded<__nv_bfloat16>(x[i]);
    }
  }
}

// squares[t][w]: warp w's part of the sum of squares of token t. The whole block calls it; block 0 writes residual_sum.
// What a warp's part is depends on k alone.
template <class T, int kWarps>
__device__ __forceinline__ void sum_squares(const VecInputParams& params, int num_tokens, float (*squares)[kWarps]) {
#pragma unroll 1
  for (int token = 0; token < num_tokens; ++token) {
    float sum = 0.0f;
#pragma unroll 1
    for (int index = threadIdx.x * 8; index < params.k; index += kWarps * kWarpSize * 8) {
      float x[8];
      load_residual_sum<T>(params, token, index, x);
      if (blockIdx.x == 0) {
        T* to = static_cast<T*>(params.residual_sum.data) + token * params.residual_sum.stride + index;
        constexpr int kSize = kVecSize<T>;
#pragma unroll
        for (int i = 0; i < 8; i += kSize) {
          Vec<T, kSize> vec;
#pragma unroll
          for (int j = 0; j < kSize; ++j) vec[j] = from_float<T>(x[i + j]);
          if (params.X.vectors) {
            vec.store(to + i);
          } else {
#pragma unroll
            for (int j = 0; j < kSize; ++j) to[i + j] = vec[j];
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) sum = fmaf(x[i], x[i], sum);
    }
    sum = warp_reduce<Sum>(sum);
    if (threadIdx.x % kWarpSize == 0) squares[token][threadIdx.x / kWarpSize] = sum;
  }
}

template <int kWarps>
__device__ __forceinline__ void sum_squares(const VecInputParams& params, int num_tokens, float (*squares)[kWarps]) {
  if (params.X.dtype == DType::kF16) {
    sum_squares<__half>(params, num_tokens, squares);
  } else if (params.X.dtype == DType::kBF16) {
    sum_squares<__nv_bfloat16>(params, num_tokens, squares);
  } else {
    sum_squares<float>(params, num_tokens, squares);
  }
}

// What a row is multiplied by, from its sums of squares.
template <int kWarps>
__device__ __forceinline__ float rms_scale(const VecInputParams& params, const float (&squares)[kWarps]) {
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += squares[w];
  return rsqrtf(sum / static_cast<float>(params.k) + params.eps);
}

}  // namespace sgl_kernel::SGL_TARGET
