// Products of NVFP4 matrices: 4-bit floats e2m1 with an e4m3 scale for each 16 neighbours along K, as scaled_fp4_quant
// makes them.
//
//   out[i, j] = alpha * sum_l (a[i, l] * scale_a[i, l / 16]) * (b[j, l] * scale_b[j, l / 16])
//
//   workspace      uint8, cutlass_scaled_fp4_mm_workspace_size() bytes, 16-byte aligned
//   out            [M, N]      f16 | bf16; rows may be strided, the last dimension is dense
//   a              [M, K / 2]  uint8: two values a byte, the first in the low bits; K is a multiple of 16; rows may be
//                              strided, the last dimension is dense
//   b              [N, K / 2]  likewise
//   block_scale_a  [ceil(M / 128) * 128, ceil(K / 64) * 4]  e4m3 in tiles of 128 x 4 (base/fp4_layout.h);
//                              contiguous, at a multiple of 16 bytes. Scales of no row and of no block may be anything.
//   block_scale_b  [ceil(N / 128) * 128, ceil(K / 64) * 4]  likewise
//   alpha          f32, one element: the inverse of the product of both global scales
//
// Products are exact, sums are f32, rounded once. sm_100a and sm_120a have tensor cores for FP4, which read scales
// without their sign: give none that are negative. The code for those two targets is compiled and has never run.
// The others widen to f16, which holds a value times its scale exactly; so does sm_100a where K is no multiple of 64, N
// is none of 8 or rows are not aligned to 16 bytes. NaN scales make their row's or column's results NaN.
//
// M == 0 or N == 0 is a no-op; K == 0 gives zeros. An element does not depend on other rows; its bits may depend on M,
// which decides the order of additions.
//
// Errors: InvalidArgument for other shapes, dtypes, strides, devices, and for an output that overlaps an input.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

Status cutlass_scaled_fp4_mm(TensorView workspace, TensorView out, TensorView a, TensorView b, TensorView block_scale_a,
                             TensorView block_scale_b, TensorView alpha, Stream stream);

// The bytes of its workspace.
int64_t cutlass_scaled_fp4_mm_workspace_size(int64_t m, int64_t k, Device::Kind device);

}  // namespace sgl_kernel
