// The CUDA kernels that every target has, for any number of tokens.
#pragma once

#include "kernels/gemm/marlin_gemm_params.h"

namespace sgl_kernel::SGL_TARGET {

Status multiply_marlin_portable(const MarlinGemmParams& params, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
