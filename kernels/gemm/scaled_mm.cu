// The entry of the targets without kernels of their own.
#include "kernels/gemm/scaled_mm_portable.h"

namespace sgl_kernel::SGL_TARGET {

Status scaled_mm(const ScaledMmParams& params, Stream stream) { return scaled_mm_portable(params, stream); }

}  // namespace sgl_kernel::SGL_TARGET
