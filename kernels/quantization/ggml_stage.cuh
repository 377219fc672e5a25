// Weight bytes on their way to a warp: blocks of 18 or 210 bytes have no alignment worth the name, so that a warp
// copies the aligned 16-byte pieces around a run of blocks to shared memory, and decodes from there.
#pragma once

#include <cstdint>

#include "kernels/device/copy_async.cuh"
#include "kernels/device/reduce.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kPiece = 16;

// Shared bytes for a run of `bytes` that starts at any even address.
constexpr int staged_bytes(int bytes) { return (bytes + 2 * kPiece - 2) / kPiece * kPiece; }

// The run's first byte in shared memory lies as far behind a multiple of 16 as in global memory.
__device__ __forceinline__ int staged_offset(const uint8_t* run) {
  return static_cast<int>(reinterpret_cast<uint64_t>(run) % kPiece);
}

// Copies `bytes` bytes at `run` to `shared` + staged_offset(run), and what else lies in the pieces around it: up to 15
// bytes on either side, which must be of the same matrix. The whole warp calls it, and commits and waits.
__device__ __forceinline__ void stage_run(uint8_t* shared, const uint8_t* run, int bytes) {
  const int offset = staged_offset(run);
  const uint8_t* first = run - offset;
#pragma unroll 1
  for (int at = threadIdx.x % kWarpSize * kPiece; at < offset + bytes; at += kWarpSize * kPiece) {
    copy_async_16(shared + at, first + at);
  }
}

// The same for a run at an edge of the matrix [begin, end): reads nothing beyond it.
__device__ __forceinline__ void stage_run_at_edge(uint8_t* shared, const uint8_t* run, int bytes, const uint8_t* begin,
                                                  const uint8_t* end) {
  const int offset = staged_offset(run);
  const uint8_t* first = run - offset;
#pragma unroll 1
  for (int at = threadIdx.x % kWarpSize * kPiece; at < offset + bytes; at += kWarpSize * kPiece) {
    const uint8_t* source = first + at;
    if (source >= begin && source + kPiece <= end) {
      copy_async_16(shared + at, source);
    } else {  // the matrix starts or ends in the middle of a piece
#pragma unroll 1
      for (int i = 0; i < kPiece; i += 2) {
        if (source + i >= begin && source + i < end) {
          *reinterpret_cast<uint16_t*>(shared + at + i) = *reinterpret_cast<const uint16_t*>(source + i);
        }
      }
    }
  }
}

}  // namespace sgl_kernel::SGL_TARGET
