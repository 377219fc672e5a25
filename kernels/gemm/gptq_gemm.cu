// The entry of the targets without kernels of their own.
#include "kernels/gemm/gptq_gemm_portable.h"

namespace sgl_kernel::SGL_TARGET {

Status multiply_gptq(const GptqGemmParams& params, Stream stream) { return multiply_gptq_portable(params, stream); }

}  // namespace sgl_kernel::SGL_TARGET
