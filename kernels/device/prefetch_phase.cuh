// Reads and writes of memory at once are slower than one after the other. A kernel that reads a little and writes much
// therefore asks for what it reads by the megabyte, ahead of its use: a few blocks of each phase of the grid ask the L2
// cache for the next phase's input.
//
// H200, 2026-11-23: awq_dequantize, then with two rows a thread, of 19 MB to 75 took 24.0 µs rather than 25.0, of 117
// MB to 470 142.9 rather than 145.6.
#pragma once

#include <cstdint>

#include "kernels/device/copy_async.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kPrefetchedLine = 128;  // bytes

// Called by every thread of a grid whose blocks, in the order of their indices, read `block_bytes` bytes each, about,
// of the `bytes` at `input`; kPhaseBlocks are best such that they read a megabyte or two. It is no read: allowed before
// wait_for_predecessor().
template <int kPhaseBlocks>
__device__ __forceinline__ void prefetch_phase(const void* input, int64_t bytes, int block_bytes) {
  constexpr int kAskingBlocks = kPhaseBlocks / 16;
  const int64_t block = int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  const int in_phase = static_cast<int>(block % kPhaseBlocks);
  if (in_phase >= kAskingBlocks) return;
  const int64_t phase_bytes = int64_t{kPhaseBlocks} * block_bytes, share = phase_bytes / kAskingBlocks;
  const int64_t begin = (block / kPhaseBlocks + 1) * phase_bytes + in_phase * share, end = min(begin + share, bytes);
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, num_threads = blockDim.x * blockDim.y;
  for (int64_t at = begin + thread * kPrefetchedLine; at < end; at += num_threads * kPrefetchedLine) {
    prefetch_to_l2(static_cast<const char*>(input) + at);
  }
}

// Likewise, for an input so small that the grid's first blocks ask for all of it: a line a thread.
__device__ __forceinline__ void prefetch_whole(const void* input, int64_t bytes) {
  const int64_t block = int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  const int64_t at = (block * (blockDim.x * blockDim.y) + thread) * kPrefetchedLine;
  if (at < bytes) prefetch_to_l2(static_cast<const char*>(input) + at);
}

}  // namespace sgl_kernel::SGL_TARGET
