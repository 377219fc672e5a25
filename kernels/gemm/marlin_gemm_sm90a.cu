// The entry of Hopper: which kernel takes a number of tokens.
#include "kernels/gemm/marlin_gemm_portable.h"
#include "kernels/gemm/marlin_gemm_sm90a.h"
#include "kernels/gemm/mixed_mm_splits.cuh"

namespace sgl_kernel::SGL_TARGET {

Status multiply_marlin(const MarlinGemmParams& params, Stream stream) {
  const bool many = params.m > kMarlinFewTokens && marlin_many_tokens_takes(params);
  const bool few = marlin_few_tokens_takes(params);
  if (!many && !few) return multiply_marlin_portable(params, stream);
  if (params.columns != nullptr) {
    SGL_RETURN_IF_ERROR(mixed_mm::gather_columns("gptq_marlin_gemm", params.gathered, params.a, params.a_stride,
                                                 params.columns, params.m, params.k, stream));
  }
  return many ? multiply_marlin_many_tokens(params, stream) : multiply_marlin_few_tokens(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
