// The main loop of matrix products on Hopper: D[rows, cols] = sum_k left[row, k] * right[col, k], operands of 8 bits.
//
// One thread, the producer, keeps a ring of stages in shared memory full with the copy engine. A team of kConsumers
// warpgroups multiplies a tile, each warpgroup 64 * kRowBlocks of its rows by all its columns; of several teams, each
// has its own tiles. Along K a stage holds 128 bytes, one row of the swizzle.
//
// A Config C of a kernel says
//   Sum         float for e4m3 operands, int32_t for int8
//   kRowBlocks, kConsumers, kCols, kStages
#pragma once

#include <cstdint>

#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/wgmma_8bit_sm90.cuh"

namespace sgl_kernel::SGL_TARGET::matmul {

inline constexpr int kWarpgroup = 128;
inline constexpr int kBlockK = kSwizzleBytes;  // K of a stage, in elements of a byte
inline constexpr int kInstructionK = 32;
inline constexpr int kInstructionRows = 64;

template <class C>
inline constexpr int kTileRows = kInstructionRows * C::kRowBlocks * C::kConsumers;

// What a consumer thread holds of D: by row block, in wgmma's layout.
template <class C>
using Sums = typename C::Sum[C::kRowBlocks][C::kCols / 2];

template <class C>
struct Ring {
  alignas(kSwizzleAtomBytes) uint8_t left[C::kStages][kTileRows<C> * kBlockK];
  alignas(kSwizzleAtomBytes) uint8_t right[C::kStages][C::kCols * kBlockK];
  Barrier full[C::kStages], empty[C::kStages];
  static constexpr uint32_t kStageBytes = (kTileRows<C> + C::kCols) * kBlockK;

  // One thread; then fence_barrier_init() and a barrier of the block.
  __device__ __forceinline__ void init() {
    for (int stage = 0; stage < C::kStages; ++stage) {
      full[stage].init(1);
      empty[stage].init(C::kConsumers * kWarpgroup / 32);
    }
  }
};

template <class C>
using Position = RingPosition<C::kStages>;

// The producer's loop over K blocks [begin, end) of the tile at (row, col).
template <class C>
__device__ __forceinline__ void produce(Ring<C>& ring, Position<C>& at, const CUtensorMap* left_map,
                                        const CUtensorMap* right_map, int row, int col, int begin, int end) {
  for (int block = begin; block < end; ++block) {
    Barrier* full = &ring.full[at.index];
    ring.empty[at.index].wait(at.parity ^ 1);
    full->arrive_and_expect(Ring<C>::kStageBytes);
    load_matrix_box(ring.left[at.index], left_map, full, row, block * kBlockK);
    load_matrix_box(ring.right[at.index], right_map, full, col, block * kBlockK);
    at.advance();
  }
}

// Each warp of the consumers says that it has read the stage.
template <class C>
__device__ __forceinline__ void release(Ring<C>& ring, int stage) {
  if (threadIdx.x % 32 == 0) ring.empty[stage].arrive();
}

// Issues the products of one stage. The sums are overwritten if `fresh`.
template <class C>
__device__ __forceinline__ void multiply_stage(const Ring<C>& ring, int stage, int consumer, bool fresh,
                                               Sums<C>& sums) {
  constexpr int kBlockBytes = kInstructionRows * kBlockK;
  const uint64_t right = make_descriptor(shared_address(ring.right[stage]), 0);
  const uint64_t left = make_descriptor(shared_address(ring.left[stage]) + consumer * C::kRowBlocks * kBlockBytes, 0);
#pragma unroll
  for (int k = 0; k < kBlockK / kInstructionK; ++k) {
#pragma unroll
    for (int block = 0; block < C::kRowBlocks; ++block) {
      wgmma_8bit<C::kCols>(sums[block], left + descriptor_offset(block * kBlockBytes + k * kInstructionK),
                           right + descriptor_offset(k * kInstructionK), k == 0 ? !fresh : 1);
    }
  }
}

template <class C>
__device__ __forceinline__ void pin_sums(Sums<C>& sums) {
#pragma unroll
  for (int block = 0; block < C::kRowBlocks; ++block) pin_registers(sums[block]);
}

// The consumers' loop over num_blocks K blocks, at least one. A stage is released while the next one is multiplied.
// issued() is called when the last product is under way.
template <class C, class Issued>
__device__ __forceinline__ void multiply(Ring<C>& ring, Position<C>& at, int num_blocks, int consumer, Sums<C>& sums,
                                         Issued&& issued) {
  int previous = -1;
  for (int block = 0; block < num_blocks; ++block) {
    ring.full[at.index].wait(at.parity);
    pin_sums<C>(sums);
    open_wgmma();
    multiply_stage<C>(ring, at.index, consumer, block == 0, sums);
    commit_wgmma();
    pin_sums<C>(sums);
    if (previous >= 0) {
      wait_wgmma<1>();
      release<C>(ring, previous);
    }
    previous = at.index;
    at.advance();
  }
  issued();
  wait_wgmma<0>();
  pin_sums<C>(sums);
  release<C>(ring, previous);
}

}  // namespace sgl_kernel::SGL_TARGET::matmul
