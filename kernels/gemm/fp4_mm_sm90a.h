// The kernels of NVFP4 products that Hopper alone has.
#pragma once

#include "kernels/gemm/fp4_mm_params.h"

namespace sgl_kernel::SGL_TARGET {

// Whether the copies of the kernel for few tokens can take the product.
bool fp4_few_tokens_takes(const Fp4MmParams& params);
Status multiply_fp4_few_tokens(const Fp4MmParams& params, Stream stream);

// The same of the one for many, which takes more than kFp4FewTokens.
bool fp4_many_tokens_takes(const Fp4MmParams& params);
Status multiply_fp4_many_tokens(const Fp4MmParams& params, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
