// Hopper's warpgroup matrix instruction (wgmma): D[64, N] += A[64, 16] B[16, N], 16-bit operands, sums in f32.
//
// The four warps of a warpgroup issue it together and it runs on its own: open_wgmma(), some wgmma_…(), commit_wgmma(),
// and wait_wgmma<pending>() before the results are read or the operands overwritten.
//
// Thread t of the warpgroup holds of D, in d[4 * j + 2 * r + e], row 16 * (t / 32) + 8 * r + t % 32 / 4 and column
// 8 * j + 2 * (t % 4) + e. A from registers has the layout of the same columns: a[0…3] are the pairs of (r, j) =
// (0, 0), (1, 0), (0, 1), (1, 1).
//
// Operands in shared memory lie as the copy engine writes them with the 128-byte swizzle: panels of 64 columns (128
// bytes a row), rows one after another, the panel aligned to 1024 bytes.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kWarpgroup = 128;  // threads, that multiply together

// Bytes of 8 rows of a panel: the unit that the swizzle permutes.
inline constexpr uint32_t kSwizzleAtomBytes = 1024;

// Describes a panelled operand to wgmma (PTX, "Matrix descriptor format"); the fields count 16-byte units. Adding
// descriptor_offset(bytes) moves the start address.
//   K runs along the columns (A, or B = keys^T):  leading_bytes is not used.
//   K runs along the rows (B = values):           leading_bytes is the distance of two panels.
__device__ __forceinline__ uint64_t make_descriptor(uint32_t address, uint32_t leading_bytes,
                                                    uint32_t stride_bytes = kSwizzleAtomBytes) {
  constexpr uint64_t kSwizzle128Bytes = uint64_t{1} << 62;
  return kSwizzle128Bytes | (uint64_t{stride_bytes >> 4} << 32) | (uint64_t{leading_bytes >> 4} << 16) |
         ((address & 0x3ffff) >> 4);
}
__host__ __device__ constexpr uint64_t descriptor_offset(uint32_t bytes) { return bytes >> 4; }

// Orders earlier accesses to the registers of D and A before the wgmmas that follow.
__device__ __forceinline__ void open_wgmma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group of wgmmas.
__device__ __forceinline__ void commit_wgmma() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kPending of the newest groups are still running.
template <int kPending>
__device__ __forceinline__ void wait_wgmma() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving reads and writes of these registers across this point: it does not know that a wgmma
// uses its registers until wait_wgmma().
template <int kSize>
__device__ __forceinline__ void pin_registers(float (&values)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <class Int, int kSize>
__device__ __forceinline__ void pin_registers(Int (&values)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

// clang-format off
#define SGL_D_8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
                   "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SGL_D_32(i) SGL_D_8(i), SGL_D_8(i + 8), SGL_D_8(i + 16), SGL_D_8(i + 24)
#define SGL_D_NAMES_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SGL_D_OPERANDS_64 SGL_D_32(0)
#define SGL_D_NAMES_128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SGL_D_OPERANDS_128 SGL_D_32(0), SGL_D_32(32)

// `p` says whether D is added to (1) or overwritten (0); the two ones are the signs of A and B; then which operands run
// along their rows (A and B from shared memory: neither; B behind A in registers: B).
#define SGL_WGMMA_SHARED(n, type, a, b, p)                                                        \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #p ", 0;\n"                              \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #type "." #type                  \
               " {" SGL_D_NAMES_##n "}, %" #a ", %" #b ", add, 1, 1, 0, 0;\n}\n"                  \
               : SGL_D_OPERANDS_##n : "l"(a_descriptor), "l"(b_descriptor), "r"(accumulate))
#define SGL_WGMMA_REGISTERS(n, type, a0, a1, a2, a3, b)                                           \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"                                   \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #type "." #type                  \
               " {" SGL_D_NAMES_##n "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b           \
               ", add, 1, 1, 1;\n}\n"                                                            \
               : SGL_D_OPERANDS_##n : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor))
// clang-format on

// D = A B^T (+ D if accumulate): A [64, 16] and B [N, 16] in shared memory, both with K along the columns.
template <class T, int kN>
__device__ __forceinline__ void wgmma_shared(float (&d)[kN / 2], uint64_t a_descriptor, uint64_t b_descriptor,
                                             int accumulate) {
  constexpr bool kIsBf16 = std::is_same_v<T, __nv_bfloat16>;
  if constexpr (kN == 64) {
    if constexpr (kIsBf16) {
      SGL_WGMMA_SHARED(64, bf16, 32, 33, 34);
    } else {
      SGL_WGMMA_SHARED(64, f16, 32, 33, 34);
    }
  } else if constexpr (kN == 128) {
    if constexpr (kIsBf16) {
      SGL_WGMMA_SHARED(128, bf16, 64, 65, 66);
    } else {
      SGL_WGMMA_SHARED(128, f16, 64, 65, 66);
    }
  } else {
    static_assert(kN == 64, "a width without a wrapper");
  }
}

// D += A B: A [64, 16] in registers, B [16, N] in shared memory with K along the rows.
template <class T, int kN>
__device__ __forceinline__ void wgmma_registers(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b_descriptor) {
  constexpr bool kIsBf16 = std::is_same_v<T, __nv_bfloat16>;
  if constexpr (kN == 64) {
    if constexpr (kIsBf16) {
      SGL_WGMMA_REGISTERS(64, bf16, 32, 33, 34, 35, 36);
    } else {
      SGL_WGMMA_REGISTERS(64, f16, 32, 33, 34, 35, 36);
    }
  } else if constexpr (kN == 128) {
    if constexpr (kIsBf16) {
      SGL_WGMMA_REGISTERS(128, bf16, 64, 65, 66, 67, 68);
    } else {
      SGL_WGMMA_REGISTERS(128, f16, 64, 65, 66, 67, 68);
    }
  } else {
    static_assert(kN == 64, "a width without a wrapper");
  }
}

#undef SGL_D_8
#undef SGL_D_32
#undef SGL_D_NAMES_64
#undef SGL_D_OPERANDS_64
#undef SGL_D_NAMES_128
#undef SGL_D_OPERANDS_128
#undef SGL_WGMMA_SHARED
#undef SGL_WGMMA_REGISTERS

}  // namespace sgl_kernel::SGL_TARGET
