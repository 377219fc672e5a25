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

// Whether the pieces around a run lie in [begin, end) to their last byte.
__device__ __forceinline__ bool pieces_inside(const uint8_t* run, int64_t bytes, const uint8_t* begin,
                                              const uint8_t* end) {
  const uint8_t* first = run - staged_offset(run);
  return first >= begin && first + (staged_offset(run) + bytes + kPiece - 1) / kPiece * kPiece <= end;
}

// Copies `bytes` bytes at `run` to `shared` + staged_offset(run). The whole warp calls it, and commits and waits.
__device__ __forceinline__ void stage_run(uint8_t* shared, const uint8_t* run, int bytes) {
  const int offset = staged_offset(run);
  const uint8_t* first = run - offset;
#pragma unroll 1
  for (int at = threadIdx.x % kWarpSize * kPiece; at < offset + bytes; at += kWarpSize * kPiece) {
    copy_async_16(shared + at, first + at);
  }
}

// The same for a run whose pieces are not all inside of [begin, end): reads nothing beyond.
__device__ __forceinline__ void stage_run_at_edge(uint8_t* shared, const uint8_t* run, int bytes, const uint8_t* begin,
                                                  const uint8_t* end) {
  const int offset = staged_offset(run);
#pragma unroll 1
  for (int at = threadIdx.x % kWarpSize * kPiece; at < offset + bytes; at += kWarpSize * kPiece) {
#pragma unroll 1
    for (int i = at; i < at + kPiece; i += 2) {
      const uint8_t* source = run - offset + i;
      if (source >= begin && source < end) {
        *reinterpret_cast<uint16_t*>(shared + i) = *reinterpret_cast<const uint16_t*>(source);
      }
    }
  }
}

}  // namespace sgl_kernel::SGL_TARGET
