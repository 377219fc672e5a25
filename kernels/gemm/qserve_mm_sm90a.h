// The kernel of QServe's products that Hopper alone has.
#pragma once

#include "kernels/gemm/qserve_mm_params.h"

namespace sgl_kernel::SGL_TARGET {

// Whether its copies can take the product.
bool qserve_many_tokens_takes(const QserveMmParams& params);
Status multiply_qserve_many_tokens(const QserveMmParams& params, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
