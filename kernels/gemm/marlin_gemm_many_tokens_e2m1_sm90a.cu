// gptq_marlin_gemm of many tokens on Hopper, with weights of float4_e2m1f.
#include "kernels/gemm/marlin_gemm_many_tokens_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

Status marlin_many_tokens_e2m1(const MarlinGemmParams& params, const many_tokens_mm::TokenTileChoice& choice,
                               Stream stream) {
  return marlin_many_tokens::launch_format<marlin::Format::kE2M1>(params, choice, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
