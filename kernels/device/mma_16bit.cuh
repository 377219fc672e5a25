// Products of 16-bit float tiles on the tensor cores, by the warp-wide instruction of sm_80. Sums are f32.
//
// Fragments, for lane = 4 * g + t (g < 8, t < 4); a register holds two numbers, the first one lower:
//   A [16, 16]  a[0]: row g, columns 2t, 2t + 1   a[1]: row g + 8   a[2], a[3]: the same, 8 columns further on
//   B [16, 8]   b0: rows 2t, 2t + 1 of column g   b1: 8 rows further on
//   C [16, 8]   c[0], c[1]: row g, columns 2t, 2t + 1   c[2], c[3]: row g + 8
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace sgl_kernel::SGL_TARGET {

// c += a * b; T is __half or __nv_bfloat16.
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

}  // namespace sgl_kernel::SGL_TARGET
