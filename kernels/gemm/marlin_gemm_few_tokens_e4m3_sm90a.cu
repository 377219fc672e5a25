// marlin_gemm_few_tokens_sm90a.cuh for float8_e4m3fn.
#include "kernels/gemm/marlin_gemm_few_tokens_sm90a.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {

Status marlin_few_tokens_e4m3(const MarlinGemmParams& params, Stream stream) {
  constexpr int kTiles = 2;
  using marlin_few_tokens::choose_tokens;
  return params.dtype == DType::kF16
             ? choose_tokens<__half, marlin::Format::kE4M3, false, kTiles>(params, stream)
             : choose_tokens<__nv_bfloat16, marlin::Format::kE4M3, false, kTiles>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
