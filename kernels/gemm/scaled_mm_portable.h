// The CUDA kernel that every target has, for any shape and alignment.
#pragma once

#include "kernels/gemm/scaled_mm_params.h"

namespace sgl_kernel::SGL_TARGET {

Status scaled_mm_portable(const ScaledMmParams& params, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
