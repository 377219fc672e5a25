// Quantized weights from the layouts of checkpoints to Marlin's (marlin_layout.h), bit for bit as upstream's.
//
//   result      int32 [size_k / 16, size_n * 16 * num_bits / 32], contiguous
//   num_bits    4 | 8
//   size_k      a multiple of 16
//   size_n      a multiple of 64
//
// The numbers are not interpreted: FP4 and FP8 weights, packed likewise, are repacked as well. All tensors are
// contiguous and on one device; result overlaps no other. size_k == 0 or size_n == 0 is a no-op. Wrong numbers, dtypes,
// shapes, strides or devices are InvalidArgument. Source: Frantar et al. 2024 (Marlin).
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// From GPTQ's layout.
//   b_q_weight  int32 [size_k * num_bits / 32, size_n]: a word holds consecutive rows of a column, the first lowest
//   perm        int32 [size_k], or empty: row k of the result is row perm[k] of the weight (act-order)
// A perm out of range is refused before anything is written, on a GPU if checks_values() (SGL_KERNEL_CHECK=1), where it
// is the caller's duty otherwise.
Status gptq_marlin_repack(TensorView result, TensorView b_q_weight, TensorView perm, int64_t size_k, int64_t size_n,
                          int64_t num_bits, Stream stream);

// From AWQ's layout.
//   b_q_weight  int32 [size_k, size_n * num_bits / 32]: a word holds consecutive columns of a row, of 4 bits in the
//               order 0 2 4 6 1 3 5 7 from the lowest bits on, of 8 bits in the order 0 2 1 3
Status awq_marlin_repack(TensorView result, TensorView b_q_weight, int64_t size_k, int64_t size_n, int64_t num_bits,
                         Stream stream);

}  // namespace sgl_kernel
