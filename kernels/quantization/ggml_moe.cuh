// What the two kernels of the products of experts share.
#pragma once

#include "kernels/quantization/ggml_mul_mat.cuh"
#include "kernels/quantization/ggml_params.h"

namespace sgl_kernel::SGL_TARGET {

struct ExpertsParams : MatMulParams {
  const int32_t* pairs;  // see ExpertsCall
  const int32_t* num_pairs;
  const int32_t* experts;
  int64_t most_pairs;
  int64_t num_experts;
  int top_k;
};

// ggml_moe_vec.cu: blocks of one pair.
Status ggml_multiply_pairs(const ExpertsParams& params, int64_t type, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
