// gptq_marlin_gemm of many tokens on Hopper, with weights of 8-bit integers.
#include "kernels/gemm/marlin_gemm_many_tokens_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

Status marlin_many_tokens_int8(const MarlinGemmParams& params, const many_tokens_mm::TokenTileChoice& choice,
                               Stream stream) {
  return marlin_many_tokens::launch_format<marlin::Format::kInt8>(params, choice, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
