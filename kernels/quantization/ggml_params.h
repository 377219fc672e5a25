// The products with few tokens and those of experts, checked, as their targets take them.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// What is multiplied: X as it is, or what the kernel makes of it on the way.
enum class VecInput : uint8_t { kAsItIs, kSiluAndMul, kAddRmsnorm };

// ggml.h has the tensors of each operator.
struct MatVecCall {
  const char* operator_name;
  VecInput input;
  TensorView result;
  TensorView workspace;
  TensorView W;
  TensorView X;  // [num_tokens, k]; kSiluAndMul: [num_tokens, 2k]
  int64_t type;
  int64_t k;
  // Of kAddRmsnorm
  TensorView residual = {};
  TensorView residual_sum = {};
  TensorView norm_weight = {};
  float eps = 0.0f;
};

// The most elements of an input that fit the shared memory of any GPU: as bytes and scales, and of the norm as floats
// beside them.
inline constexpr int64_t kMostSiluElements = 65536, kMostNormElements = 16384;

Status ggml_mul_mat_vec(const MatVecCall& call, Stream stream);

// Pairs in blocks that have an expert each.
struct ExpertsCall {
  const char* operator_name;
  TensorView result;  // [num_tokens * top_k, row]
  TensorView workspace;
  TensorView W;  // [num_experts, row, bytes_per_row]
  TensorView X;  // [num_tokens, k]
  int64_t type;
  int64_t top_k;
  int block;                 // 1 or kGgmlMoeBlock
  int64_t most_pairs;        // with those that fill up blocks
  const int32_t* pairs;      // [most_pairs], of which some are none; or null: all, in their order
  const int32_t* num_pairs;  // [1]: how many of `pairs` count; or null: most_pairs
  const int32_t* experts;    // of each block; some are none
};

Status ggml_multiply_experts(const ExpertsCall& call, Stream stream);

}  // namespace sgl_kernel
