// Products with weights in GPTQ's layout.
//
//   q_weight, b_q_weight  int32 [K * bit / 32, N]: columns of numbers of `bit` bits, packed along K (gptq_layout.h)
//   bit                   2 | 3 | 4 | 8
//
// K is a multiple of 32. All tensors are contiguous and on one device. Wrong dtypes, shapes, strides, numbers or
// devices are InvalidArgument. Source: Frantar et al. 2022 (GPTQ); the shuffled order is ExLlamaV2's.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// Makes a weight ready for gptq_gemm with use_shuffle, in place: row k becomes row q_perm[k], then the numbers of each
// word are reordered.
//   workspace  int32, of q_weight's shape if q_perm is given, else empty
//   q_perm     int32 [K], or empty for the rows as they are
// A q_perm out of range is refused before anything is written, on a GPU if checks_values() (SGL_KERNEL_CHECK=1), where
// it is the caller's duty otherwise.
Status gptq_shuffle(TensorView workspace, TensorView q_weight, TensorView q_perm, int64_t bit, Stream stream);

// Multiplies.
//   result[m, n] = sum_k a[m, p(k)] * (q[k, n] - zeros[g(k), n] - 1) * b_gptq_scales[g(k), n]
//   use_shuffle, of a weight that went through gptq_shuffle:  p(k) = b_g_idx[k]   g(k) = k / (K / G)
//   not use_shuffle:                                          p(k) = k            g(k) = b_g_idx[k]
//   with an empty b_g_idx:                                    p(k) = k            g(k) = k / (K / G)
//   result         [M, N]            f16
//   workspace      uint8, gptq_gemm_workspace_size() bytes, 16-byte aligned
//   a              [M, K]            f16; on a GPU 16-byte aligned
//   b_gptq_qzeros  [G, N * bit / 32] int32: zero points, packed along N; one is added to each
//   b_gptq_scales  [G, N]            f16
//   b_g_idx        [K] or [0]        int32, from 0 to K - 1 or to G - 1
// N is a multiple of 32; K a multiple of G wherever groups are not read from b_g_idx. Sums are f32. On a GPU the weight
// is rounded to f16 before, where groups are read from b_g_idx or are no multiples of 32 rows (2 bits: 64, 3 bits:
// 128). M decides the order of additions. An infinity in a row of a makes its results infinite, or NaN where the weight
// is zero; with up to 8 tokens and a shuffled weight of 4 bits on Hopper it makes all of them NaN. M == 0 or N == 0 is
// a no-op. A b_g_idx out of range is refused as q_perm is. On a GPU b_q_weight, b_gptq_scales and result are 16-byte
// aligned.
Status gptq_gemm(TensorView result, TensorView workspace, TensorView a, TensorView b_q_weight, TensorView b_gptq_qzeros,
                 TensorView b_gptq_scales, TensorView b_g_idx, bool use_shuffle, int64_t bit, Stream stream);

// The bytes of gptq_gemm's workspace; `gathers` if it uses a shuffled weight and b_g_idx is not empty.
int64_t gptq_gemm_workspace_size(int64_t m, int64_t n, int64_t k, bool gathers, Device::Kind device);

}  // namespace sgl_kernel
