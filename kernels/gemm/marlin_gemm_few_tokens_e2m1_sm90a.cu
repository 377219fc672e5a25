// marlin_gemm_few_tokens_sm90a.cuh for float4_e2m1f.
#include "kernels/gemm/marlin_gemm_few_tokens_sm90a.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {

Status marlin_few_tokens_e2m1(const MarlinGemmParams& params, Stream stream) {
  constexpr int kTiles = 4;
  using marlin_few_tokens::choose_tokens;
  return params.dtype == DType::kF16
             ? choose_tokens<__half, marlin::Format::kE2M1, false, kTiles>(params, stream)
             : choose_tokens<__nv_bfloat16, marlin::Format::kE2M1, false, kTiles>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
