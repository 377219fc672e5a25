// The CUDA kernel that every target has, for any shape and alignment.
#pragma once

#include "kernels/gemm/fp4_mm_params.h"

namespace sgl_kernel::SGL_TARGET {

Status fp4_mm_portable(const Fp4MmParams& params, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
