// Products of 8-bit integer tiles on the tensor cores, by the warp-wide instructions of sm_80.
//
// Fragments, for lane = 4 * g + t (g < 8, t < 4); a register holds 4 bytes, the lowest byte first:
//   A [16, K]  a[0]: row g, bytes 4t..4t+3   a[1]: row g + 8   and for K = 32 a[2], a[3]: the same 16 bytes further on
//   B [K, 8]   b[0]: column g, bytes 4t..    and for K = 32 b[1]: 16 bytes further on
//   C [16, 8]  c[0], c[1]: row g, columns 2t and 2t + 1;  c[2], c[3]: row g + 8
#pragma once

#include <cstdint>

#include "kernels/device/copy_async.cuh"

namespace sgl_kernel::SGL_TARGET {

// Four tiles of 8 rows of 16 bytes: lane i points at row i % 8 of tile i / 8, and gets bytes 4 (i % 4).. of row i / 4
// of each tile.
__device__ __forceinline__ void load_matrices(uint32_t (&tiles)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(shared_address(row))
               : "memory");
}

// d = a * b + c for K = 32, c being the same number everywhere.
__device__ __forceinline__ void mma_16x8x32(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                            uint32_t b0, uint32_t b1, int c) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %10, %10, %10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(c));
}

// d += a * b for K = 32.
__device__ __forceinline__ void mma_int8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d = a * b + c for K = 16.
__device__ __forceinline__ void mma_16x8x16(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0, int c) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a0), "r"(a1), "r"(b0), "r"(c));
}

}  // namespace sgl_kernel::SGL_TARGET
