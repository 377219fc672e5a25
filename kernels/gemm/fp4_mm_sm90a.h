// The kernel of NVFP4 products that Hopper alone has.
#pragma once

#include "kernels/gemm/fp4_mm_params.h"

namespace sgl_kernel::SGL_TARGET {

// Whether its copies can take the product.
bool fp4_many_tokens_takes(const Fp4MmParams& params);
Status multiply_fp4_many_tokens(const Fp4MmParams& params, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
