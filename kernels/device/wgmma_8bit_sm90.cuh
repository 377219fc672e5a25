// Hopper's warpgroup matrix instruction (wgmma) for operands of 8 bits: D[64, N] += A[64, 32] B[N, 32]^T, both from
// shared memory with K along the columns; e4m3 with sums in f32, or int8 with exact sums in int32. wgmma_sm90.cuh has
// the fences, the layout of D and the descriptors. A panel is 128 columns here; the next 32 of K lie 32 bytes on.
//
// The sums of e4m3 products have fewer bits than f32's: before the instruction adds products, it aligns them to the
// largest and cuts off what lies more than 13 bits or so below its leading bit.
#pragma once

#include <cstdint>

#include "kernels/device/wgmma_sm90.cuh"

namespace sgl_kernel::SGL_TARGET {

// clang-format off
// The registers of D by name and as operands: N / 2 of them.
#define SGL_R_8(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), \
                   "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]), "+r"(d[i + 7])
#define SGL_F_8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
                   "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SGL_F_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SGL_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define SGL_NAMES_24 SGL_NAMES_16 ", %8, %9, %10, %11"
#define SGL_NAMES_32 SGL_NAMES_16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SGL_NAMES_48 SGL_NAMES_32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define SGL_NAMES_56 SGL_NAMES_48 ", %24, %25, %26, %27"
#define SGL_NAMES_64 SGL_NAMES_48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define SGL_NAMES_72 SGL_NAMES_64 ", %32, %33, %34, %35"
#define SGL_NAMES_80 SGL_NAMES_64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define SGL_NAMES_96 SGL_NAMES_80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define SGL_NAMES_112 SGL_NAMES_96 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define SGL_NAMES_128 SGL_NAMES_112 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define SGL_NAMES_144 SGL_NAMES_128 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define SGL_NAMES_160 SGL_NAMES_144 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define SGL_NAMES_176 SGL_NAMES_160 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define SGL_NAMES_192 SGL_NAMES_176 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define SGL_NAMES_208 SGL_NAMES_192 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define SGL_NAMES_224 SGL_NAMES_208 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define SGL_NAMES_240 SGL_NAMES_224 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define SGL_NAMES_256 SGL_NAMES_240 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define SGL_F_16 SGL_F_8(0)
#define SGL_F_24 SGL_F_16, SGL_F_4(8)
#define SGL_F_32 SGL_F_16, SGL_F_8(8)
#define SGL_F_48 SGL_F_32, SGL_F_8(16)
#define SGL_F_56 SGL_F_48, SGL_F_4(24)
#define SGL_F_64 SGL_F_48, SGL_F_8(24)
#define SGL_F_72 SGL_F_64, SGL_F_4(32)
#define SGL_F_80 SGL_F_64, SGL_F_8(32)
#define SGL_F_96 SGL_F_80, SGL_F_8(40)
#define SGL_F_112 SGL_F_96, SGL_F_8(48)
#define SGL_F_128 SGL_F_112, SGL_F_8(56)
#define SGL_F_144 SGL_F_128, SGL_F_8(64)
#define SGL_F_160 SGL_F_144, SGL_F_8(72)
#define SGL_F_176 SGL_F_160, SGL_F_8(80)
#define SGL_F_192 SGL_F_176, SGL_F_8(88)
#define SGL_F_208 SGL_F_192, SGL_F_8(96)
#define SGL_F_224 SGL_F_208, SGL_F_8(104)
#define SGL_F_240 SGL_F_224, SGL_F_8(112)
#define SGL_F_256 SGL_F_240, SGL_F_8(120)
#define SGL_R_16 SGL_R_8(0)
#define SGL_R_32 SGL_R_16, SGL_R_8(8)
#define SGL_R_48 SGL_R_32, SGL_R_8(16)
#define SGL_R_64 SGL_R_48, SGL_R_8(24)
#define SGL_R_80 SGL_R_64, SGL_R_8(32)
#define SGL_R_96 SGL_R_80, SGL_R_8(40)
#define SGL_R_112 SGL_R_96, SGL_R_8(48)
#define SGL_R_128 SGL_R_112, SGL_R_8(56)
#define SGL_R_144 SGL_R_128, SGL_R_8(64)
#define SGL_R_160 SGL_R_144, SGL_R_8(72)
#define SGL_R_176 SGL_R_160, SGL_R_8(80)
#define SGL_R_192 SGL_R_176, SGL_R_8(88)
#define SGL_R_208 SGL_R_192, SGL_R_8(96)
#define SGL_R_224 SGL_R_208, SGL_R_8(104)
#define SGL_R_240 SGL_R_224, SGL_R_8(112)
#define SGL_R_256 SGL_R_240, SGL_R_8(120)

// `kind` is F (e4m3, whose instruction ends with the signs of A and B) or R (int8); `p` says whether D is added to (1)
// or overwritten (0).
#define SGL_SIGNS_F ", 1, 1"
#define SGL_SIGNS_R ""
#define SGL_TYPES_F "f32.e4m3.e4m3"
#define SGL_TYPES_R "s32.s8.s8"
#define SGL_WGMMA(kind, n, a, b, p)                                                              \
  if constexpr (kN == n) {                                                                       \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #p ", 0;\n"                           \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k32." SGL_TYPES_##kind                  \
                 " {" SGL_NAMES_##n "}, %" #a ", %" #b ", add" SGL_SIGNS_##kind ";\n}\n"         \
                 : SGL_##kind##_##n : "l"(a_descriptor), "l"(b_descriptor), "r"(accumulate));    \
  }
#define SGL_WGMMA_WIDTHS(kind)                                          \
  SGL_WGMMA(kind, 16, 8, 9, 10)                                         \
  SGL_WGMMA(kind, 32, 16, 17, 18)                                       \
  SGL_WGMMA(kind, 48, 24, 25, 26)                                       \
  SGL_WGMMA(kind, 64, 32, 33, 34)                                       \
  SGL_WGMMA(kind, 80, 40, 41, 42)                                       \
  SGL_WGMMA(kind, 96, 48, 49, 50)                                       \
  SGL_WGMMA(kind, 112, 56, 57, 58)                                      \
  SGL_WGMMA(kind, 128, 64, 65, 66)                                      \
  SGL_WGMMA(kind, 144, 72, 73, 74)                                      \
  SGL_WGMMA(kind, 160, 80, 81, 82)                                      \
  SGL_WGMMA(kind, 176, 88, 89, 90)                                      \
  SGL_WGMMA(kind, 192, 96, 97, 98)                                      \
  SGL_WGMMA(kind, 208, 104, 105, 106)                                   \
  SGL_WGMMA(kind, 224, 112, 113, 114)                                   \
  SGL_WGMMA(kind, 240, 120, 121, 122)                                   \
  SGL_WGMMA(kind, 256, 128, 129, 130)
// clang-format on

// D = A B^T (+ D if accumulate), e4m3. kN is a multiple of 16, at most 256, or 24, 56 or 72.
template <int kN>
__device__ __forceinline__ void wgmma_8bit(float (&d)[kN / 2], uint64_t a_descriptor, uint64_t b_descriptor,
                                           int accumulate) {
  static_assert((kN % 16 == 0 && kN <= 256) || kN == 24 || kN == 56 || kN == 72);
  SGL_WGMMA(F, 24, 12, 13, 14)
  SGL_WGMMA(F, 56, 28, 29, 30)
  SGL_WGMMA(F, 72, 36, 37, 38)
  SGL_WGMMA_WIDTHS(F)
}

// The same for int8, whose kN is a multiple of 16.
template <int kN>
__device__ __forceinline__ void wgmma_8bit(int32_t (&d)[kN / 2], uint64_t a_descriptor, uint64_t b_descriptor,
                                           int accumulate) {
  static_assert(kN % 16 == 0 && kN <= 256);
  SGL_WGMMA_WIDTHS(R)
}

#undef SGL_WGMMA
#undef SGL_WGMMA_WIDTHS

}  // namespace sgl_kernel::SGL_TARGET
