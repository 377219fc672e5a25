// Products of 16-bit float tiles on the tensor cores, by the warp-wide instruction of sm_80: d += a * b, in f32.
//
// Fragments, for lane = 4 * g + t (g < 8, t < 4); a register holds two numbers, the first in its low half:
//   A [16, 16]  a[0]: row g, k = 2t and 2t + 1   a[1]: row g + 8   a[2], a[3]: the same rows, k = 2t + 8 and 2t + 9
//   B [16, 8]   b[0]: column g, k = 2t and 2t + 1   b[1]: k = 2t + 8 and 2t + 9
//   D [16, 8]   d[0], d[1]: row g, columns 2t and 2t + 1   d[2], d[3]: row g + 8
// The order of k does not matter as long as both operands have the same one.
#pragma once

#include <cstdint>

namespace sgl_kernel::SGL_TARGET {

__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace sgl_kernel::SGL_TARGET
