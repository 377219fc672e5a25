// Products with weights of 4 or 8 bits in Marlin's layout (marlin_layout.h).
//
//   result[m, n] = sum_k a[m, p(k)] * w(k, n)
//   w(k, n)      = (q[k, n] - zero(g(k), n)) * scale(g(k), n) [* global_scale]
//
// Sums are f32: the numbers q - zero are exact in a's dtype, and a group's sum is scaled in f32. But with float zero
// points on a GPU the difference, and with irregular groups there, or many tokens and several groups on Hopper, the
// whole weight is rounded to a's dtype.
//
// What is not finite in a row of a stays in its results: a NaN makes them NaN, an infinity infinite, or NaN where the
// number is zero.
#pragma once

#include <optional>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

//   result        [M, N]               a's dtype; also c_or_none, if that is given
//   workspace_bytes  uint8, gptq_marlin_gemm_workspace_size() bytes, 16-byte aligned
//   a             [M, K]               f16 | bf16; rows may be strided by multiples of 8 elements, 16-byte aligned
//   b_q_weight    [K / 16, N * 16 * bits / 32]  int32, as gptq_marlin_repack and awq_marlin_repack make them
//   b_q_type_id   ScalarType.id:       q                          zero                     scale
//     uint4b8, uint8b128               0 … 15, 0 … 255            8, 128                   b_scales
//     uint4, uint8                     0 … 15, 0 … 255            b_zeros                  b_scales
//     float8_e4m3fn                    the number, NaN as 480     0                        b_scales / 2^8 (bf16: 2^120)
//     float4_e2m1f, groups of 16       the number                 0                        b_scales / 2^7
//   b_scales      [G, N]               a's dtype; columns permuted as marlin_scale_place() says
//     float4_e2m1f: float8_e4m3fn whose bytes are a number without sign, with 5 bits of exponent and 3 of mantissa,
//     of 2^7 times the scale; rows 2i and 2i + 1 alternate every 8 places, and of each 4 places the middle two are
//     swapped
//   global_scale_or_none  1 number     a's dtype, with float4_e2m1f: 2^7 times the scale (bf16: 2^119 times)
//   b_zeros_or_none       with uint4, uint8 (else none, or empty), and without act-order:
//     [G, N * bits / 32]               int32; columns permuted for several groups, packed as marlin_zero_bit() says
//     [G, N]                           f16, if is_zp_float and a is f16; columns permuted like b_scales'
//   g_idx_or_none, perm_or_none        int32 [K], or none, or empty: act-order; p(k) = perm[k], else k
//   workspace     int32: upstream's locks; neither read nor written
//   g(k)          k / (K / G); if act-order and not is_k_full g_idx[k], which ascends
// size_m, size_n, size_k are M, N, K; K is a multiple of 16 * G (float4_e2m1f: of 32), N of 64. All but a are
// contiguous, on one device; on a GPU b_q_weight, b_scales and f16 b_zeros are 16-byte aligned, int32 b_zeros and the
// result 4-byte. use_fp32_reduce and use_atomic_add are leave to add partial sums otherwise: here they are
// added in f32 and in one order, always, which M decides. M == 0 is a no-op. Indices out of range are refused before
// anything is written, on a GPU if checks_values() (SGL_KERNEL_CHECK=1), where they are the caller's duty otherwise.
// Anything else is InvalidArgument. Source: Frantar et al. 2024 (Marlin).
Status gptq_marlin_gemm(TensorView result, TensorView workspace_bytes, TensorView a,
                        const std::optional<TensorView>& c_or_none, TensorView b_q_weight, TensorView b_scales,
                        const std::optional<TensorView>& global_scale_or_none,
                        const std::optional<TensorView>& b_zeros_or_none,
                        const std::optional<TensorView>& g_idx_or_none, const std::optional<TensorView>& perm_or_none,
                        TensorView workspace, int64_t b_q_type_id, int64_t size_m, int64_t size_n, int64_t size_k,
                        bool is_k_full, bool use_atomic_add, bool use_fp32_reduce, bool is_zp_float, Stream stream);

// The bytes of the first workspace; `gathers` if perm is given and not empty.
int64_t gptq_marlin_gemm_workspace_size(int64_t m, int64_t n, int64_t k, bool gathers, Device::Kind device);

}  // namespace sgl_kernel
