// The entry of the targets without kernels of their own.
#include "kernels/gemm/marlin_gemm_portable.h"

namespace sgl_kernel::SGL_TARGET {

Status multiply_marlin(const MarlinGemmParams& params, Stream stream) {
  return multiply_marlin_portable(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
