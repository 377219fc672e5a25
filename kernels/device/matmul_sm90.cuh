// The main loop of matrix products on Hopper: D[rows, cols] = sum_k left[row, k] * right[col, k], operands of 8 bits.
//
// One thread, the producer, keeps a ring of stages in shared memory full with the copy engine. A team of kConsumers
// warpgroups multiplies a tile, each warpgroup 64 * kRowBlocks of its rows by all its columns; of several teams, each
// has its own tiles. Along K a stage holds 128 bytes, one row of the swizzle.
//
// A Config C of a kernel says
//   Sum         float for e4m3 operands, int32_t for int8
//   kRowBlocks, kConsumers, kCols, kStages
//   kLeftRows   rows of `left` in a stage: a tile's, or fewer, and then the others are what lies behind
//   kScales     numbers that a warp besides the producer copies to each stage; 0: there is no such warp
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/wgmma_8bit_sm90.cuh"

namespace sgl_kernel::SGL_TARGET::matmul {

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
  alignas(kSwizzleAtomBytes) uint8_t left[C::kStages][C::kLeftRows * kBlockK];
  alignas(kSwizzleAtomBytes) uint8_t right[C::kStages][C::kCols * kBlockK];
  Barrier full[C::kStages], empty[C::kStages];
  float scales[C::kStages][C::kScales > 0 ? C::kScales : 1];

  // One thread; then fence_barrier_init() and a barrier of the block.
  __device__ __forceinline__ void init() {
    for (int stage = 0; stage < C::kStages; ++stage) {
      full[stage].init(C::kScales > 0 ? 1 + 32 : 1);
      empty[stage].init(C::kConsumers * kWarpgroup / 32);
    }
  }
};

template <class C>
using Position = RingPosition<C::kStages>;

inline int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Rows of a box of an operand. A matrix of fewer rows than a tile is described by a box as small, because the copy
// engine takes long over rows outside the matrix. What then stays in the rest of the tile only enters sums that nobody
// stores.
inline int box_rows_of(int64_t rows, int tile_rows) { return rows < tile_rows ? static_cast<int>(rows) : tile_rows; }

// The map of an operand [rows, k] of bytes, or of [batches, rows, k].
inline Status encode_operand(const char* operator_name, CUtensorMap* map, const void* data, int64_t rows, int64_t k,
                             int64_t row_bytes, int tile_rows, int64_t batches = 0, int64_t batch_bytes = 0) {
  return encode_matrix_map(operator_name, map,
                           {.data = const_cast<void*>(data),
                            .rows = static_cast<uint64_t>(rows),
                            .columns = static_cast<uint64_t>(k),
                            .row_bytes = static_cast<uint64_t>(row_bytes),
                            .box_rows = static_cast<uint32_t>(box_rows_of(rows, tile_rows)),
                            .box_columns = kBlockK,
                            .element_bytes = 1,
                            .batches = static_cast<uint64_t>(batches),
                            .batch_bytes = static_cast<uint64_t>(batch_bytes)});
}

// The producer's loop over K blocks [begin, end) of the tile at (row, col) of these batches of the operands. box_rows
// are those of both operands together.
template <class C>
__device__ __forceinline__ void produce(Ring<C>& ring, Position<C>& at, const CUtensorMap* left_map,
                                        const CUtensorMap* right_map, int row, int col, int begin, int end,
                                        int box_rows, int left_batch, int right_batch) {
  for (int block = begin; block < end; ++block) {
    Barrier* full = &ring.full[at.index];
    ring.empty[at.index].wait(at.parity ^ 1);
    full->arrive_and_expect(box_rows * kBlockK);
    load_matrix_box(ring.left[at.index], left_map, full, row, block * kBlockK, left_batch);
    load_matrix_box(ring.right[at.index], right_map, full, col, block * kBlockK, right_batch);
    at.advance();
  }
}

// Each warp of the consumers says that it has read the stage: all its lanes, what they read by themselves included. The
// warp's barrier orders their reads before the one arrival, but compute-sanitizer's racecheck follows the arriving lane
// alone and reports those of `scales` against the next round's copies: with an arrival of each lane, which takes 1%
// longer, it reports nothing.
template <class C>
__device__ __forceinline__ void release(Ring<C>& ring, int stage) {
  if (C::kScales > 0) __syncwarp();
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
// issued() is called when the last product is under way. The sums are overwritten if `fresh`.
template <class C, class Issued>
__device__ __forceinline__ void multiply(Ring<C>& ring, Position<C>& at, int num_blocks, int consumer, Sums<C>& sums,
                                         Issued&& issued, bool fresh = true) {
  int previous = -1;
  for (int block = 0; block < num_blocks; ++block) {
    ring.full[at.index].wait(at.parity);
    pin_sums<C>(sums);
    open_wgmma();
    multiply_stage<C>(ring, at.index, consumer, fresh && block == 0, sums);
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
  release<C>(ring, previous);  // before anybody reads the sums: that may take long
  pin_sums<C>(sums);
}

// Sums of e4m3 products lose the more, the longer they get (wgmma_8bit_sm90.cuh). Those over more K blocks than this
// are promoted: stretches of so many blocks are summed on the tensor cores, and their sums in f32.
inline constexpr int kPromotedBlocks = 32;

// What the stretches so far add up to, for the kSums sums of a consumer thread, rounded to bf16: half as many registers
// as sums. What the rounding leaves over, exact in f32, stays in the sums for the next stretch: next to what that loses
// itself, what it loses for being larger by 2^-9 of the total is nothing.
template <int kSums>
struct Totals {
  __nv_bfloat162 pairs[kSums / 2] = {};

  // Moves the sums here, but for what the rounding leaves over. If `is_first`, there is nothing here yet.
  __device__ __forceinline__ void take(float (&sums)[kSums], bool is_first) {
    if (!is_first) add_to(sums);
#pragma unroll
    for (int i = 0; i < kSums / 2; ++i) {
      pairs[i] = __floats2bfloat162_rn(sums[2 * i], sums[2 * i + 1]);
      const float2 taken = __bfloat1622float2(pairs[i]);
      sums[2 * i] -= taken.x;
      sums[2 * i + 1] -= taken.y;
    }
  }
  __device__ __forceinline__ void add_to(float (&sums)[kSums]) const {
#pragma unroll
    for (int i = 0; i < kSums / 2; ++i) {
      const float2 total = __bfloat1622float2(pairs[i]);
      sums[2 * i] += total.x;
      sums[2 * i + 1] += total.y;
    }
  }
};

// multiply() with promoted sums.
template <class C, class Issued>
__device__ __forceinline__ void multiply_promoted(Ring<C>& ring, Position<C>& at, int num_blocks, int consumer,
                                                  Sums<C>& sums, Issued&& issued) {
  constexpr int kSums = C::kRowBlocks * C::kCols / 2;
  auto& flat = reinterpret_cast<float (&)[kSums]>(sums);
  Totals<kSums> totals;
  bool fresh = true;
  for (; num_blocks > kPromotedBlocks; num_blocks -= kPromotedBlocks) {
    multiply<C>(ring, at, kPromotedBlocks, consumer, sums, [] {}, fresh);
    totals.take(flat, fresh);
    fresh = false;
  }
  multiply<C>(ring, at, num_blocks, consumer, sums, issued, fresh);
  totals.add_to(flat);
}

}  // namespace sgl_kernel::SGL_TARGET::matmul
