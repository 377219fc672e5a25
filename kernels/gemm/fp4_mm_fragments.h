// Where the lanes of a warp find the fragments of NVFP4 operands in shared memory: rows of 32 bytes of values, and a
// tile of scales. A header of its own, so that a test on the CPU can go the same ways.
#pragma once

#include <cstdint>

#include "kernels/base/fp4_layout.h"

namespace sgl_kernel {

struct Fp4Place {
  int row, byte;
};

// The 16 bytes that a lane points load_matrices() at, for 16 rows of A: its tiles are rows 0 to 7 and 8 to 15 of the
// first half of K, then of the second.
constexpr Fp4Place fp4_left_place(int lane) { return {lane % 16, lane / 16 * 16}; }

// Likewise for 16 columns of B: the two halves of K of the first 8, then of the next 8.
constexpr Fp4Place fp4_right_place(int lane) { return {lane / 16 * 8 + lane % 8, lane / 8 % 2 * 16}; }

// The row of 16 of A, and the column of 8 of B, whose scales a lane gives to the NVFP4 matrix instruction of sm_120a
// (device/mma_fp4.cuh). Lanes that it does not read hold some of them again.
constexpr int fp4_left_scale_row(int lane) { return lane % 2 * 8 + lane / 4; }
constexpr int fp4_right_scale_column(int lane) { return lane / 4; }

// The bits of a row's four scales that count where K ends after `blocks` of them: those behind may be anything.
constexpr uint32_t fp4_scale_mask(int blocks) {
  return blocks < kScaleTileColumns ? (uint32_t{1} << (8 * blocks)) - 1 : ~uint32_t{0};
}

}  // namespace sgl_kernel
