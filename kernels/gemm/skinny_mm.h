// Products of a few rows with a large bf16 matrix, bound by reading that matrix once.
//
//   output[i, j] = sum_l mat_a[i, l] * b[j, l]
//
//   mat_a   [M, K]  bf16; rows may be strided, the last dimension is dense
//   b       [N, K]  bf16: mat_b or its transpose; rows may be strided, the last dimension is dense
//   output  [M, N]  rows may be strided, the last dimension is dense
//
// Sums are f32, rounded once. Sizes may be any; upstream's (K = 7168, N = 2112, 256 or 384, up to 16 rows) are what the
// kernels are made for. M == 0 or N == 0 is a no-op; K == 0 gives zeros. An element's bits do not depend on the other
// rows.
//
// Errors: InvalidArgument for other shapes, dtypes, strides, devices, and for an output that overlaps an input.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// mat_b [K, N], column-major: b is its transpose. output bf16.
Status dsv3_fused_a_gemm(TensorView output, TensorView mat_a, TensorView mat_b, Stream stream);

// mat_b [N, K] is b. output bf16 | f32.
Status dsv3_router_gemm(TensorView output, TensorView mat_a, TensorView mat_b, Stream stream);

}  // namespace sgl_kernel
