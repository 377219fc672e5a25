// The entry of Hopper: which kernel takes a number of tokens.
#include "kernels/gemm/fp4_mm_portable.h"
#include "kernels/gemm/fp4_mm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {

Status fp4_mm(const Fp4MmParams& params, Stream stream) {
  if (fp4_many_tokens_takes(params)) return multiply_fp4_many_tokens(params, stream);
  return fp4_few_tokens_takes(params) ? multiply_fp4_few_tokens(params, stream) : fp4_mm_portable(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
