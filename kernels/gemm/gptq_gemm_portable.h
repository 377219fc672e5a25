// The CUDA kernels that every target has, for any number of tokens and of bits.
#pragma once

#include "kernels/gemm/gptq_gemm_params.h"

namespace sgl_kernel::SGL_TARGET {

Status multiply_gptq_portable(const GptqGemmParams& params, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
