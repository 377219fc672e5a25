// The CUDA kernel that every target has, for any shape and alignment.
#pragma once

#include "kernels/gemm/qserve_mm_params.h"

namespace sgl_kernel::SGL_TARGET {

Status qserve_mm_portable(const QserveMmParams& params, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
