// wgmma with A in registers and B^T in shared memory, of any width: D[64, N] += A[64, 16] B[N, 16]^T, both 16-bit with
// sums in f32; or A[64, 32] B[N, 32]^T, both int8 with exact sums in int32. wgmma_sm90.cuh has the fences, the layouts
// of D and A and the descriptors; the lists of registers are those of wgmma_8bit_sm90.cuh.
//
// The registers of A are read while the instruction runs: they are the caller's again behind wait_wgmma().
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/device/wgmma_8bit_sm90.cuh"

namespace sgl_kernel::SGL_TARGET {

// clang-format off
#define SGL_WGMMA(n, type, a0, a1, a2, a3, b, p)                                                             \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #p ", 0;\n"                                         \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #type "." #type                             \
               " {" SGL_NAMES_##n "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", add, 1, 1, 0;\n}\n" \
               : SGL_F_##n : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor), "r"(accumulate))
#define SGL_WGMMA_WIDTH(n, ...)                                      \
  if constexpr (kN == n) {                                           \
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {                \
      SGL_WGMMA(n, bf16, __VA_ARGS__);                               \
    } else {                                                         \
      SGL_WGMMA(n, f16, __VA_ARGS__);                                \
    }                                                                \
  }
// clang-format on

// D = A B^T (+ D if accumulate): A in registers, B [kN, 16] with K along the columns. kN is a multiple of 16, at most
// 256.
template <class T, int kN>
__device__ __forceinline__ void wgmma_registers_transposed(float (&d)[kN / 2], const uint32_t (&a)[4],
                                                           uint64_t b_descriptor, int accumulate) {
  static_assert(kN % 16 == 0 && kN <= 256);
  SGL_WGMMA_WIDTH(16, 8, 9, 10, 11, 12, 13)
  SGL_WGMMA_WIDTH(32, 16, 17, 18, 19, 20, 21)
  SGL_WGMMA_WIDTH(48, 24, 25, 26, 27, 28, 29)
  SGL_WGMMA_WIDTH(64, 32, 33, 34, 35, 36, 37)
  SGL_WGMMA_WIDTH(80, 40, 41, 42, 43, 44, 45)
  SGL_WGMMA_WIDTH(96, 48, 49, 50, 51, 52, 53)
  SGL_WGMMA_WIDTH(112, 56, 57, 58, 59, 60, 61)
  SGL_WGMMA_WIDTH(128, 64, 65, 66, 67, 68, 69)
  SGL_WGMMA_WIDTH(144, 72, 73, 74, 75, 76, 77)
  SGL_WGMMA_WIDTH(160, 80, 81, 82, 83, 84, 85)
  SGL_WGMMA_WIDTH(176, 88, 89, 90, 91, 92, 93)
  SGL_WGMMA_WIDTH(192, 96, 97, 98, 99, 100, 101)
  SGL_WGMMA_WIDTH(208, 104, 105, 106, 107, 108, 109)
  SGL_WGMMA_WIDTH(224, 112, 113, 114, 115, 116, 117)
  SGL_WGMMA_WIDTH(240, 120, 121, 122, 123, 124, 125)
  SGL_WGMMA_WIDTH(256, 128, 129, 130, 131, 132, 133)
}

// clang-format off
#define SGL_WGMMA_INT8(n, a0, a1, a2, a3, b, p)                                                              \
  if constexpr (kN == n) {                                                                                   \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #p ", 0;\n"                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k32.s32.s8.s8"                                      \
                 " {" SGL_NAMES_##n "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", add;\n}\n"        \
                 : SGL_R_##n : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor), "r"(accumulate)); \
  }
// clang-format on

// The same for int8: kN is a multiple of 32.
template <class T, int kN>
__device__ __forceinline__ void wgmma_registers_transposed(int32_t (&d)[kN / 2], const uint32_t (&a)[4],
                                                           uint64_t b_descriptor, int accumulate) {
  static_assert(std::is_same_v<T, int8_t> && kN % 32 == 0 && kN <= 256);
  SGL_WGMMA_INT8(32, 16, 17, 18, 19, 20, 21)
  SGL_WGMMA_INT8(64, 32, 33, 34, 35, 36, 37)
  SGL_WGMMA_INT8(96, 48, 49, 50, 51, 52, 53)
  SGL_WGMMA_INT8(128, 64, 65, 66, 67, 68, 69)
  SGL_WGMMA_INT8(160, 80, 81, 82, 83, 84, 85)
  SGL_WGMMA_INT8(192, 96, 97, 98, 99, 100, 101)
  SGL_WGMMA_INT8(224, 112, 113, 114, 115, 116, 117)
  SGL_WGMMA_INT8(256, 128, 129, 130, 131, 132, 133)
}

#undef SGL_WGMMA_INT8
#undef SGL_WGMMA
#undef SGL_WGMMA_WIDTH

}  // namespace sgl_kernel::SGL_TARGET
