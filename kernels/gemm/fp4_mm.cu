// The entry of the targets without kernels of their own.
#include "kernels/gemm/fp4_mm_portable.h"

namespace sgl_kernel::SGL_TARGET {

Status fp4_mm(const Fp4MmParams& params, Stream stream) { return fp4_mm_portable(params, stream); }

}  // namespace sgl_kernel::SGL_TARGET
