// The entry of the targets without kernels of their own.
#include "kernels/gemm/qserve_mm_portable.h"

namespace sgl_kernel::SGL_TARGET {

Status qserve_mm(const QserveMmParams& params, Stream stream) { return qserve_mm_portable(params, stream); }

}  // namespace sgl_kernel::SGL_TARGET
