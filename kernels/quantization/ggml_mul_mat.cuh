// What the two kernels of ggml_mul_mat_a8 in 8 bits share, and those of the products of experts: quantized activations,
// and how a result is added up. The former two add the groups of a slice of k in their order, and then the slices in
// theirs, so that a token's bits do not depend on the number of tokens.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"
#include "kernels/quantization/ggml_activations.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kSliceGroups = 8;  // a block of the formats that have large ones

// The workspace: bytes [num_tokens, groups * 32], then scales [num_tokens, groups].
struct Workspace {
  uint8_t* quants;
  ActivationScale* scales;
};

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

// ggml_mul_mat_slices.cu: sets all of `params`, and quantizes X into the workspace.
Status ggml_prepare_mul_mat(const char* operator_name, MatMulParams& params, TensorView result, TensorView workspace,
                            TensorView W, TensorView X, int64_t row, Stream stream);

// For few tokens, or few rows, on Hopper for small products: ggml_mul_mat_slices.cu.
Status ggml_mul_mat_slices(const MatMulParams& params, int64_t type, Stream stream);

// An integer sum comes as the bits of the float kFloatBase + sum, since the products start from that float's bits:
// exact below 2^22 (32 * 128 * 127 is 2^19), and cheaper than a conversion. scale * sum is then one operation: scales
// have at most 19 bits, so that scale * kFloatBase is exact, and the sum is rounded once.
inline constexpr int kFloatBaseBits = 0x4b400000;
inline constexpr float kFloatBase = 12582912.0f;  // 1.5 * 2^23

// The scales of a row of W for a group.
template <class Format>
struct RowScale {
  float scale[Format::kScales];
  float minus_base;  // scale[0] * -kFloatBase
  float offset[Format::kScales];

  __device__ __forceinline__ void set_base() { minus_base = __fmul_rn(scale[0], -kFloatBase); }
};

// As scaled_dot() of ggml_activations.cuh, of sums as they come.
template <class Format>
__device__ __forceinline__ float scaled_sum(const RowScale<Format>& row, int dot0, int dot1, const float (&x_sums)[2]) {
  float value = __fmaf_rn(row.scale[0], __int_as_float(dot0), row.minus_base);
  if constexpr (Format::kScales == 2) {
    value = __fmaf_rn(row.scale[1], __fsub_rn(__int_as_float(dot1), kFloatBase), value);
  }
  if constexpr (Format::kHasOffset) {
    value = __fmaf_rn(row.offset[0], x_sums[0], value);
    if constexpr (Format::kScales == 2) value = __fmaf_rn(row.offset[1], x_sums[1], value);
  }
  return value;
}

// The sums of a group's activations as scaled_sum() takes them.
template <class Format>
__device__ __forceinline__ void sums_of(const ActivationScale& x, float (&sums)[2]) {
  if constexpr (Format::kHasOffset) {
    const float2 halves = __half22float2(x.sums);
    sums[0] = Format::kScales == 2 ? halves.x : halves.x + halves.y;
    sums[1] = halves.y;
  }
}

}  // namespace sgl_kernel::SGL_TARGET
