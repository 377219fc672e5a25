// marlin_gemm_few_tokens_sm90a.cuh for 8-bit integers.
#include "kernels/gemm/marlin_gemm_few_tokens_sm90a.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {

Status marlin_few_tokens_int8(const MarlinGemmParams& params, Stream stream) {
  constexpr int kTiles = 2;  // as many bytes as four of 4 bits
  using marlin_few_tokens::choose_zeros;
  return params.dtype == DType::kF16 ? choose_zeros<__half, marlin::Format::kInt8, kTiles>(params, stream)
                                     : choose_zeros<__nv_bfloat16, marlin::Format::kInt8, kTiles>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
