// Products of NVFP4 matrices by the warp-wide matrix instruction of sm_80: values are widened to f16 in the main loop.
//
// Grid: fp4_mm_tile.cuh. Bound by the widening for many rows, by the latency of one tile for few: K is not split.
// Measured on an H200, 2026-11-23, N x K = 9216 x 4096: 92 µs for a row, 95 for 64.
#include "kernels/device/fp8.cuh"
#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/mma_int8.cuh"
#include "kernels/gemm/fp4_mm_fragments.h"
#include "kernels/gemm/fp4_mm_portable.h"
#include "kernels/gemm/fp4_mm_tile.cuh"
#include "kernels/gemm/fp4_mm_widen.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

// The scales of a row's four blocks for this thread: of the block that its four bytes are in, for each half of kMmaK.
// `word` has the four scales, of which the first `blocks` are there.
struct RowScales {
  uint32_t of_half[2];  // pairs of f16

  __device__ __forceinline__ RowScales(uint32_t word, int blocks) {
    const HalfPairs pairs = half_of_e4m3(word & fp4_scale_mask(blocks));
    // Threads 0 and 1 of four have the first 16 values of 32.
    const uint32_t selector = threadIdx.x % 4 < 2 ? 0x1010 : 0x3232;
    of_half[0] = __byte_perm(pairs.first, 0, selector);
    of_half[1] = __byte_perm(pairs.second, 0, selector);
  }
};

// Of the two halves of kMmaK and the two instructions of each.
struct Left {
  uint32_t a[2][2][4];
};
struct Right {
  uint32_t b[2][2][2];
};

__device__ __forceinline__ uint32_t load_word(const uint8_t* shared) {
  return *reinterpret_cast<const uint32_t*>(shared);
}

struct WidenedProduct {
  static constexpr float kFactor = kProductFactor;

  static __device__ __forceinline__ void multiply(const Fp4Stage& stage, int part, int first_row, int first_column,
                                                  int blocks, Sums<float>& sums) {
    const int lane = threadIdx.x % 32, k = part * kMmaK;
    Right right[kColumnFragments];
#pragma unroll
    for (int pair = 0; pair < kColumnFragments / 2; ++pair) {
      const Fp4Place place = fp4_right_place(lane);
      uint32_t b[4];
      load_matrices(b, &stage.b[first_column + pair * 16 + place.row][k + place.byte]);
#pragma unroll
      for (int next = 0; next < 2; ++next) {
        const int column = first_column + pair * 16 + next * 8 + lane / 4;
        const RowScales scales(load_word(&stage.b_scales[part][scale_in_tile(column)]), blocks);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t wide[4];
          widen(b[2 * next + half], scales.of_half[half], wide);
#pragma unroll
          for (int i = 0; i < 4; ++i) right[2 * pair + next].b[half][i / 2][i % 2] = wide[i];
        }
      }
    }
#pragma unroll
    for (int row = 0; row < kRowFragments; ++row) {
      const Fp4Place place = fp4_left_place(lane);
      uint32_t a[4];
      load_matrices(a, &stage.a[first_row + row * kMmaRows + place.row][k + place.byte]);
      Left left;
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const int i = first_row + row * kMmaRows + lower * 8 + lane / 4;
        const RowScales scales(load_word(&stage.a_scales[part][scale_in_tile(i)]), blocks);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t wide[4];
          widen(a[2 * half + lower], scales.of_half[half], wide);
#pragma unroll
          for (int p = 0; p < 4; ++p) left.a[half][p / 2][p % 2 * 2 + lower] = wide[p];
        }
      }
#pragma unroll
      for (int column = 0; column < kColumnFragments; ++column) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const auto& b = right[column].b[half];
          mma_16x8x16<__half>(sums[row][column], left.a[half][0], b[0][0], b[0][1]);
          mma_16x8x16<__half>(sums[row][column], left.a[half][1], b[1][0], b[1][1]);
        }
      }
    }
  }
};

}  // namespace

Status fp4_mm_portable(const Fp4MmParams& params, Stream stream) {
  return multiply_fp4_tiles<WidenedProduct>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
