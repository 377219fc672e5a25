// Products of NVFP4 tiles (e2m1 with a scale for each 16 neighbours along K) by the warp-wide instruction of sm_120a.
// Sums are f32.
//
// Fragments, for lane = 4 * g + t (g < 8, t < 4); a register holds 8 values, the first one lowest:
//   A [16, 64]  a[0]: row g, values 8t..8t + 7      a[1]: row g + 8   a[2], a[3]: the same, 32 values further on
//   B [64, 8]   b[0]: column g, values 8t..8t + 7   b[1]: 32 values further on
//   C [16, 8]   c[0], c[1]: row g, columns 2t and 2t + 1   c[2], c[3]: row g + 8
// A register of scales holds the four of a row of A or a column of B, e4m3 without a sign, the first one lowest. Row g
// is read from the lane with t = 0, row g + 8 from t = 1, column g from t = 0; other lanes may hold anything.
// Source: PTX ISA 9.0, mma.m16n8k64 and its block scaling with the selectors {0, 0}.
#pragma once

#include <cstdint>

namespace sgl_kernel::SGL_TARGET {

// c += (a * scales_a) * (b * scales_b).
__device__ __forceinline__ void mma_16x8x64_fp4(float (&c)[4], const uint32_t (&a)[4], uint32_t scales_a, uint32_t b0,
                                                uint32_t b1, uint32_t scales_b) {
  asm("mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, %10, {0, 0}, %11, {0, 0};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(scales_a), "r"(scales_b));
}

}  // namespace sgl_kernel::SGL_TARGET
