// What the portable products of quantized matrices share: a block's tile of the output, how it lies over the warps, and
// the warp-wide matrix instructions of sm_80.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/base/launch.h"
#include "kernels/device/copy_async.cuh"

namespace sgl_kernel::SGL_TARGET {

// A tile of 128 x 128, of 8 warps with 64 x 32 each. K goes by in steps of 64 bytes, three of which are in shared
// memory.
inline constexpr int kTile = 128;  // rows, and columns
inline constexpr int kStepK = 64;  // bytes
inline constexpr int kStages = 3;
inline constexpr int kWarpRows = 64, kWarpColumns = 32;  // of a warp's part of the tile
inline constexpr int kWarpsAcross = kTile / kWarpColumns;
inline constexpr int kThreads = kTile / kWarpRows * kWarpsAcross * 32;
inline constexpr int kPitch = kStepK + 16;  // so that 8 rows of 16 bytes lie in different banks
inline constexpr int kMmaRows = 16, kMmaColumns = 8, kMmaK = 32;
inline constexpr int kRowFragments = kWarpRows / kMmaRows, kColumnFragments = kWarpColumns / kMmaColumns;

// One step of K of kTile rows to shared memory, zeros outside the matrix. Rows that the 16-byte copies cannot take are
// read byte by byte.
template <bool kAligned>
__device__ __forceinline__ void load_rows(uint8_t (*to)[kPitch], const uint8_t* matrix, int64_t stride,
                                          int64_t first_row, int64_t rows, int64_t first_k, int64_t k) {
  constexpr int kChunk = 16, kChunks = kStepK / kChunk;
#pragma unroll
  for (int i = threadIdx.x; i < kTile * kChunks; i += kThreads) {
    const int row = i / kChunks, offset = i % kChunks * kChunk;
    const int64_t left = first_row + row < rows ? k - first_k - offset : 0;  // bytes of the row from here on
    const int bytes = static_cast<int>(min(max(left, int64_t{0}), int64_t{kChunk}));
    const uint8_t* from = bytes > 0 ? matrix + (first_row + row) * stride + first_k + offset : matrix;
    if constexpr (kAligned) {
      copy_async<kChunk>(&to[row][offset], from, bytes);
    } else {
      for (int byte = 0; byte < kChunk; ++byte) to[row][offset + byte] = byte < bytes ? from[byte] : 0;
    }
  }
}

// Of a warp; an element of a fragment is in row 8 * (e / 2) + lane / 4 and column 2 * (lane % 4) + e % 2.
template <class Sum>
using Sums = Sum[kRowFragments][kColumnFragments][4];

// The tile of a block: blocks side by side take rows, so that they share columns of B.
struct BlockTile {
  int64_t row, column;  // the first of each

  __device__ __forceinline__ BlockTile(int64_t index, int64_t rows) {
    const int64_t row_tiles = (rows + kTile - 1) / kTile;
    row = index % row_tiles * kTile;
    column = index / row_tiles * kTile;
  }
};

inline int64_t num_tiles(int64_t rows, int64_t columns) {
  return (rows + kTile - 1) / kTile * ((columns + kTile - 1) / kTile);
}

// A block's way along K: load(stage, step) asks for a step, ahead of multiply(stage, step).
template <class Stage, class Load, class Multiply>
__device__ __forceinline__ void run_steps(Stage* stages, int steps, Load&& load, Multiply&& multiply) {
  const auto ask = [&](int step) {
    if (step < steps) load(stages[step % kStages], step);
    commit_copies();
  };
  for (int step = 0; step < kStages - 1; ++step) ask(step);
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    ask(step + kStages - 1);
    multiply(stages[step % kStages], step);
  }
  wait_for_copies<0>();
}

// A block for each tile, with kStages of Stage.
template <class Stage, class Params>
Status launch_tiles(void (*kernel)(Params), const Params& params, int64_t tiles, Stream stream) {
  if (tiles > INT32_MAX) return Unsupported(std::string(params.operator_name) + ": more than 2^45 results");
  constexpr size_t kSharedBytes = sizeof(Stage) * kStages;
  SGL_RETURN_IF_ERROR(allow_shared_memory(params.operator_name, kernel, kSharedBytes));
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(tiles)), .block = dim3(kThreads), .shared_bytes = kSharedBytes};
  return launch(params.operator_name, kernel, shape, stream, params);
}

}  // namespace sgl_kernel::SGL_TARGET
