// The entry of the targets without kernels of their own.
#include "kernels/gemm/skinny_mm_portable.h"

namespace sgl_kernel::SGL_TARGET {

Status skinny_mm(const SkinnyMmParams& params, Stream stream) { return skinny_mm_portable(params, stream); }

}  // namespace sgl_kernel::SGL_TARGET
