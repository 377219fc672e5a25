// gptq_marlin_gemm of few tokens on Hopper: see few_tokens_mm_sm90a.cuh for the grid and what bounds it.
//
// Measured on an H200, 2026-11-23, uint4b8, bf16, groups of 128, in µs; the portable kernel's in the same day's:
//   N x K               9216 x 4096   4096 x 8192   3072 x 4096   4096 x 1536   24576 x 1536   7168 x 16384
//   1 token             14.0          12.1          6.7           4.2           12.0           35.6
//   8 tokens            15.0          13.2          7.2           4.7           13.1           37.8
//   portable, 1 token   19.3          17.1          10.3          8.1           17.6           42.5
#include "kernels/gemm/marlin_gemm_few_tokens_sm90a.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

using marlin::FewTokensWeight;

template <class T, bool kZeros>
Status choose_groups(const MarlinGemmParams& params, Stream stream) {
  constexpr char kName[] = "gptq_marlin_gemm";
  constexpr int kTokenTiles = kMarlinFewTokens / 8, kStepK = FewTokensWeight<T, kZeros, 1>::kStepK;
  if (params.many_groups && params.group_size % kStepK != 0) {
    return few_tokens::multiply<few_tokens::Config<FewTokensWeight<T, kZeros, 2>, kTokenTiles>>(kName, params, stream);
  }
  return few_tokens::multiply<few_tokens::Config<FewTokensWeight<T, kZeros, 1>, kTokenTiles>>(kName, params, stream);
}

template <class T>
Status choose_zeros(const MarlinGemmParams& params, Stream stream) {
  return params.zeros != nullptr ? choose_groups<T, true>(params, stream) : choose_groups<T, false>(params, stream);
}

}  // namespace

bool marlin_few_tokens_takes(const MarlinGemmParams& params) {
  constexpr int kLeastGroup = 32;  // half of a step
  const bool is_int4 = params.type == MarlinType::kU4 || params.type == MarlinType::kU4B8;
  return params.m <= kMarlinFewTokens && is_int4 && !params.zeros_are_float && params.groups == nullptr &&
         params.n <= few_tokens::kMostColumns && params.k > 0 && params.k / kMarlinTileK < few_tokens::kSmallNumber &&
         (params.num_groups == 1 || params.group_size % kLeastGroup == 0);
}

Status multiply_marlin_few_tokens(const MarlinGemmParams& params, Stream stream) {
  return params.dtype == DType::kF16 ? choose_zeros<__half>(params, stream)
                                     : choose_zeros<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
