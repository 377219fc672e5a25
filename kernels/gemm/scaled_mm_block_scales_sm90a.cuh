// Scales of blocks on Hopper: how they reach shared memory, and the main loop of large tiles with them,
//   D[i, j] = sum_b scale_a[i, b] * scale_b[b, j / kScaleBlock] * sum_{k in b} left[i, k] * right[j, k]
//
// Measured on an H200, 2026-11-23, fp8_blockwise_scaled_mm, random operands and scales, bf16 out:
//   M x N x K            TFLOP/s      M x N x K           GB/s
//   1024 x 9216 x 4096   1252         16 x 7168 x 16384   3646
//   4096 x 9216 x 4096   1241         64 x 7168 x 16384   3645
//   4096 x 4096 x 7168   1303         128 x 7168 x 16384  3243
//   4096 x 7168 x 16384  1230         64 x 24576 x 1536   3272
//   4096 x 24576 x 1536  1200         64 x 2112 x 7168    2153
// Timed in turns with the products without scales, tiles of 128 columns reach 91 to 94% of their rate where K is 4096
// and more, 82 to 85% where it is 1536 and 2048. In turns with sgl-kernel 0.4.2 (M from 256 to 8192, K from 1536 to
// 16384), whose products take 4 to 8% longer, power holds the clock at 1.3 to 1.6 of its 1.98 GHz; the same loop
// without the scaling takes 6 to 8% less. Not faster were: tiles of 256 rows or columns (the sums of a block are then
// scaled while nothing of the same warpgroup is multiplied), of 192 columns as two halves with sums of their own or
// with the warpgroups taking turns at the tensor cores, of 192 rows by three warpgroups, clusters that share A, a
// warpgroup that lags behind the other by some blocks, blocks of the next tile ahead of this one's end, and two teams
// with tiles of 64 rows (but for a single wave of them).
#pragma once

#include "kernels/device/matmul_sm90.cuh"
#include "kernels/gemm/scaled_mm_params.h"

namespace sgl_kernel::SGL_TARGET::matmul {

// Scales of B behind those of A in a stage: a tile's columns lie in one block or in two neighbours.
inline constexpr int kScalesOfB = 2;

// The loop of the warp beside the producer over K blocks [begin, end) of a tile, all its lanes: copies the scales of
// rows of A from `row` on and those of B from `column` on to the ring. Behind the last row and column: the last ones.
// It runs as far ahead as the producer, so that nobody waits for memory.
template <class C>
__device__ __forceinline__ void produce_scales(Ring<C>& ring, Position<C>& at, const ScaleMatrix& a, int row,
                                               int last_row, const ScaleMatrix& b, int column, int last_column,
                                               int begin, int end) {
  constexpr int kRows = C::kScales - kScalesOfB, kRowsALane = (kRows + 31) / 32;
  const int lane = threadIdx.x % 32;
  const float* from_a[kRowsALane];
#pragma unroll
  for (int i = 0; i < kRowsALane; ++i) {
    from_a[i] = a.data + min(row + lane + 32 * i, last_row) * a.row_stride + begin * a.column_stride;
  }
  const float* from_b =
      b.data + begin * b.row_stride + min(column / kScaleBlock + lane, last_column / kScaleBlock) * b.column_stride;
  for (int block = begin; block < end; ++block) {
    float* to = ring.scales[at.index];
    ring.empty[at.index].wait(at.parity ^ 1);
#pragma unroll
    for (int i = 0; i < kRowsALane; ++i) {
      if (lane + 32 * i < kRows) copy_async<sizeof(float)>(&to[lane + 32 * i], from_a[i], sizeof(float));
      from_a[i] += a.column_stride;
    }
    if (lane < kScalesOfB) copy_async<sizeof(float)>(&to[kRows + lane], from_b, sizeof(float));
    from_b += b.row_stride;
    ring.full[at.index].arrive_after_copies();
    at.advance();
  }
}

// What a thread's sums of a K block are multiplied by.
template <class C>
struct Factors {
  // Columns that share a scale, wherever the tile begins.
  static constexpr int kGroup = C::kCols % 128 == 0  ? 128
                                : C::kCols % 64 == 0 ? 64
                                : C::kCols % 32 == 0 ? 32
                                : C::kCols % 16 == 0 ? 16
                                                     : 8;
  float a[2], b[kScalesOfB];

  __device__ __forceinline__ void load(const float* scales, int row) {
    a[0] = scales[row];
    a[1] = scales[row + 8];
#pragma unroll
    for (int i = 0; i < kScalesOfB; ++i) b[i] = scales[C::kScales - kScalesOfB + i];
  }

  // totals += factors * sums; the tile's columns from `boundary` on have the second scale of B.
  __device__ __forceinline__ void add(Sums<C>& totals, const Sums<C>& sums, int boundary) const {
    constexpr int kWidth = kGroup < C::kCols ? kGroup : C::kCols;
    float factors[C::kCols / kWidth][2];
#pragma unroll
    for (int g = 0; g < C::kCols / kWidth; ++g) {
      const float scale = g * kWidth < boundary ? b[0] : b[1];
      factors[g][0] = a[0] * scale;
      factors[g][1] = a[1] * scale;
    }
#pragma unroll
    for (int i = 0; i < C::kCols / 2; ++i) totals[0][i] += factors[2 * i / kWidth][i / 2 % 2] * sums[0][i];
  }
};

// The consumers' loop over num_blocks K blocks, at least one, of a tile that begins at column `col`, kRowBlocks being
// 1. While the sums of a block are scaled, the next block is multiplied: by the same warpgroup if it has the registers
// for a second set of sums, else by the other one. issued() is called when the last product is under way.
template <class C, class Issued>
__device__ __forceinline__ void multiply_blocks(Ring<C>& ring, Position<C>& at, int num_blocks, int consumer, int col,
                                                Sums<C>& totals, Issued&& issued) {
  static_assert(C::kRowBlocks == 1);
  const int row = (consumer * kInstructionRows + threadIdx.x % kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4) %
                  (C::kScales - kScalesOfB);
  const int boundary = kScaleBlock - col % kScaleBlock;
#pragma unroll
  for (auto& total : totals[0]) total = 0;
  const auto issue = [&](Sums<C>& sums, Factors<C>& factors) {
    ring.full[at.index].wait(at.parity);
    pin_sums<C>(sums);
    open_wgmma();
    multiply_stage<C>(ring, at.index, consumer, true, sums);
    commit_wgmma();
    pin_sums<C>(sums);
    factors.load(ring.scales[at.index], row);
  };
  if constexpr (3 * C::kCols / 2 > C::kMostSums) {
    Sums<C> sums;
    Factors<C> factors;
    for (int block = 0; block < num_blocks; ++block) {
      issue(sums, factors);
      if (block + 1 == num_blocks) issued();
      wait_wgmma<0>();
      pin_sums<C>(sums);
      release<C>(ring, at.index);
      at.advance();
      factors.add(totals, sums, boundary);
    }
  } else {
    Sums<C> even, odd;
    Factors<C> even_factors, odd_factors;
    int previous = at.index;
    const auto scale = [&](const Factors<C>& factors, Sums<C>& sums) {
      pin_sums<C>(sums);
      release<C>(ring, previous);
      factors.add(totals, sums, boundary);
    };
    const auto step = [&](Sums<C>& next, Factors<C>& next_factors, Sums<C>& done, const Factors<C>& done_factors) {
      issue(next, next_factors);
      wait_wgmma<1>();
      scale(done_factors, done);
      previous = at.index;
      at.advance();
    };
    issue(even, even_factors);
    at.advance();
    int block = 1;
    for (; block + 1 < num_blocks; block += 2) {
      step(odd, odd_factors, even, even_factors);
      step(even, even_factors, odd, odd_factors);
    }
    if (block < num_blocks) {
      step(odd, odd_factors, even, even_factors);
      issued();
      wait_wgmma<0>();
      scale(odd_factors, odd);
    } else {
      issued();
      wait_wgmma<0>();
      scale(even_factors, even);
    }
  }
}

}  // namespace sgl_kernel::SGL_TARGET::matmul
