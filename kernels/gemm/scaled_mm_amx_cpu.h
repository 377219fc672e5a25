// Scaled products of 8-bit matrices on CPUs that have AMX, matrix instructions on tiles of 16 rows of 64 bytes.
#pragma once

#include "kernels/gemm/scaled_mm_params.h"

namespace sgl_kernel::cpu {

// Whether the processor has AMX and the system lets this process use it. SGL_KERNEL_AMX=0 makes the loops serve that
// other CPUs have.
bool has_amx();

// What scaled_mm() is, only if has_amx().
void amx_scaled_mm(const ScaledMmParams& params);

}  // namespace sgl_kernel::cpu
