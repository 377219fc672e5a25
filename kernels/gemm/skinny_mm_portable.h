// The CUDA kernel that every target has, for any shape and alignment.
#pragma once

#include "kernels/gemm/skinny_mm_params.h"

namespace sgl_kernel::SGL_TARGET {

Status skinny_mm_portable(const SkinnyMmParams& params, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
