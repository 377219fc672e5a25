// Products of NVFP4 matrices on the FP4 tensor cores of sm_120a, of any shape and alignment.
//
// Grid: fp4_mm_tile.cuh. Nothing is widened: fragments go from shared memory to the tensor cores as they are. Compiled,
// never run: nothing here is measured. That the fragments are what the instruction reads is shown on the CPU
// (tests/gemm/fp4_mm_fragments_test.cc); the copies, barriers and stores are those of the portable kernel, which has
// run. `cuobjdump -sass` of the object shows the instruction as OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X.
#include "kernels/device/mma_fp4.cuh"
#include "kernels/device/mma_int8.cuh"
#include "kernels/gemm/fp4_mm_fragments.h"
#include "kernels/gemm/fp4_mm_tile.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

// The four scales of a row, or of a column.
__device__ __forceinline__ uint32_t load_scales(const uint8_t* tile, int row, int blocks) {
  return *reinterpret_cast<const uint32_t*>(tile + scale_in_tile(row)) & fp4_scale_mask(blocks);
}

struct BlockScaledProduct {
  static constexpr float kFactor = 1;

  static __device__ __forceinline__ void multiply(const Fp4Stage& stage, int part, int first_row, int first_column,
                                                  int blocks, Sums<float>& sums) {
    const int lane = threadIdx.x % 32, k = part * kMmaK;
    uint32_t right[kColumnFragments / 2][4], right_scales[kColumnFragments];
#pragma unroll
    for (int pair = 0; pair < kColumnFragments / 2; ++pair) {
      const Fp4Place place = fp4_right_place(lane);
      load_matrices(right[pair], &stage.b[first_column + pair * 16 + place.row][k + place.byte]);
    }
#pragma unroll
    for (int column = 0; column < kColumnFragments; ++column) {
      const int j = first_column + column * kMmaColumns + fp4_right_scale_column(lane);
      right_scales[column] = load_scales(stage.b_scales[part], j, blocks);
    }
#pragma unroll
    for (int row = 0; row < kRowFragments; ++row) {
      const Fp4Place place = fp4_left_place(lane);
      const int i = first_row + row * kMmaRows;
      uint32_t left[4];
      load_matrices(left, &stage.a[i + place.row][k + place.byte]);
      const uint32_t left_scales = load_scales(stage.a_scales[part], i + fp4_left_scale_row(lane), blocks);
#pragma unroll
      for (int column = 0; column < kColumnFragments; ++column) {
        const uint32_t* const b = &right[column / 2][column % 2 * 2];
        mma_16x8x64_fp4(sums[row][column], left, left_scales, b[0], b[1], right_scales[column]);
      }
    }
  }
};

}  // namespace

Status fp4_mm(const Fp4MmParams& params, Stream stream) {
  return multiply_fp4_tiles<BlockScaledProduct>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
