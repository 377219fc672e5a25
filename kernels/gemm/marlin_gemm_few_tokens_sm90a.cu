// gptq_marlin_gemm of few tokens on Hopper: what the kernel of marlin_gemm_few_tokens_sm90a.cuh takes.
#include "kernels/base/launch.h"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"
#include "kernels/gemm/marlin_layout.h"

namespace sgl_kernel::SGL_TARGET {

bool marlin_few_tokens_takes(const MarlinGemmParams& params) {
  constexpr uintptr_t kAlignment = 16;  // of the copy engine
  constexpr int64_t kMostColumns = kMostGridY * kMarlinTileN;
  constexpr int64_t kLeastGroup = 32, kLongestStage = 512;  // along K
  // Stages are powers of two, so that groups and stages divide each other.
  const bool whole_groups = params.num_groups == 1 || params.type == MarlinType::kE2M1 ||
                            (params.group_size >= kLeastGroup &&
                             (params.group_size % kLongestStage == 0 || kLongestStage % params.group_size == 0));
  const void* const a = params.gathered != nullptr ? params.gathered : params.a;
  return params.m <= kMarlinFewTokens && params.n <= kMostColumns && params.k > 0 && !params.zeros_are_float &&
         params.groups == nullptr && whole_groups && reinterpret_cast<uintptr_t>(params.zeros) % kAlignment == 0 &&
         matrix_map_fits(a, params.m, params.k, params.a_stride * 2) &&
         matrix_map_fits(params.weight, params.k, params.n, params.n);
}

Status multiply_marlin_few_tokens(const MarlinGemmParams& params, Stream stream) {
  switch (params.type) {
    case MarlinType::kU4:
    case MarlinType::kU4B8:
      return marlin_few_tokens_int4(params, stream);
    case MarlinType::kU8:
    case MarlinType::kU8B128:
      return marlin_few_tokens_int8(params, stream);
    case MarlinType::kE4M3:
      return marlin_few_tokens_e4m3(params, stream);
    default:
      return marlin_few_tokens_e2m1(params, stream);
  }
}

}  // namespace sgl_kernel::SGL_TARGET
