// How a row lies in the blocks that search it (row.cuh), what they share, and their sums.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/base/launch.h"
#include "kernels/device/reduce.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/sampling/draw.h"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kThreads = kClasses * kWarpSize;
inline constexpr int kStride = kThreads * kVecSize<float>;  // values that a block takes at once
static_assert(kStride == kClasses * kRun, "a warp holds one class");
inline constexpr int kSampleEvery = 32;  // one value of so many, more of few rows
inline constexpr int kSampleLoads = 5;   // vectors that a thread loads before it uses the first
inline constexpr int kMaxRanks = 8;      // the largest cluster that every Hopper GPU can place

inline constexpr int kListSize = 14336;                    // where it fits: an equal part for each rank and class
inline constexpr size_t kLineBytes = 128;                  // what the ring is aligned to: copies are whole lines
inline constexpr int kQueueSize = 2 * kWarpSize;           // vectors
inline constexpr int kBinBits = 9, kBins = 1 << kBinBits;  // of a search's histogram
inline constexpr int kSampleBits = 12;                     // leading bits of a key, by which the sample is counted
inline constexpr int kLargestSample = 1 << 15;             // values: their counts have 16 bits
inline constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kBins == kThreads, "a thread for each bin");

// How a row is laid out over a group.
struct RowShape {
  int ranks, rank_bits;      // 2^rank_bits ranks
  int strides;               // of each rank's slice
  int list_size, part_size;  // of a rank and class
  bool lists_all;            // the list holds the whole row
  int sample_every;          // a power of 2, in strides
};

struct Entry {
  uint32_t key, place;
};

// What a warp, which has one class of a rank's values, found in gather().
struct Gathered {
  Tally above;      // from the split up
  uint64_t total;   // mass
  uint32_t listed;  // values in the list, if it was large enough
  uint32_t peak;    // key
};

// Vectors of a warp's values, some of which are to be listed or counted.
struct alignas(16) Queue {
  float values[kQueueSize][4];
  uint32_t places[kQueueSize];
};

struct alignas(kLineBytes) RowShared {
  Queue queues[kClasses];
  Gathered gathered[kMaxRanks][kClasses];
  uint64_t class_masses[kMaxRanks][kClasses];
  uint32_t sampled_peaks[kMaxRanks];  // keys
  uint32_t sampled_peak;              // of this rank
  Tally warp_tallies[kClasses];
  Tally above;  // what was gathered by all
  uint64_t total;
  uint32_t peak;
  bool fits;
  uint64_t warp_masses[kClasses];
  Cut cut;
  uint32_t num_candidates, candidates[kWarpSize];  // select.cuh
  // band.cuh
  uint32_t warp_counts[kClasses];
  float warp_floats[2][kClasses];
  int lo_bin, hi_bin;
  uint32_t sampled_from_lo;
};

// Dynamic shared memory: RowShared, histograms (the sample's is the larger, and done with when the others start), list,
// ring of pairs of strides.
inline constexpr size_t kHistogramBytes = sizeof(uint16_t) << kSampleBits;
static_assert(kHistogramBytes >= 3 * sizeof(uint32_t) * kBins);

template <class Group>
size_t dynamic_bytes(const RowShape& shape) {
  return sizeof(RowShared) + kHistogramBytes + shape.list_size * sizeof(Entry) +
         sizeof(float) * 2 * kStride * Group::kCopies;
}

// For `rows` rows that are searched at once.
template <class Group>
RowShape row_shape(int64_t rows, int64_t vocab) {
  const int64_t strides = (vocab + kStride - 1) / kStride;
  // A large cluster lies in one group of multiprocessors, of which it may leave some unused.
  const int64_t all = num_sms(), usable = all * 3 / 4;
  int rank_bits = Group::kMaxRankBits;
  const auto needs_fewer = [&](int ranks) { return rows * ranks > (ranks > 2 ? usable : all) || strides < ranks; };
  while (rank_bits > 0 && needs_fewer(1 << rank_bits)) --rank_bits;
  const int ranks = 1 << rank_bits;
  RowShape shape = {.ranks = ranks,
                    .rank_bits = rank_bits,
                    .strides = static_cast<int>((strides + ranks - 1) / ranks),
                    .list_size = kListSize,
                    .sample_every = std::max(kSampleEvery / ranks, kSampleEvery / 8)};
  while (dynamic_bytes<Group>(shape) > static_cast<size_t>(max_shared_memory())) shape.list_size /= 2;
  // Lanes read the parts of all ranks at once: those are not to begin in the same bank.
  shape.part_size = shape.list_size / (ranks * kClasses) - (ranks > 1 ? 4 : 0);
  shape.lists_all = shape.strides * kRun <= shape.part_size;
  while (shape.strides / shape.sample_every > kLargestSample / kStride) shape.sample_every *= 2;
  return shape;
}

// Sums over a warp, for all its lanes.
__device__ __forceinline__ uint64_t warp_sum(uint64_t value) {
  // By 27 bits, of which 32 sum to less than 2^32.
  constexpr int kBits = 27;
  constexpr uint32_t kMask = (1u << kBits) - 1;
  const uint64_t low = __reduce_add_sync(kAllLanes, static_cast<uint32_t>(value) & kMask);
  const uint64_t middle = __reduce_add_sync(kAllLanes, static_cast<uint32_t>(value >> kBits) & kMask);
  const uint64_t high = __reduce_add_sync(kAllLanes, static_cast<uint32_t>(value >> 2 * kBits));
  return low + (middle << kBits) + (high << 2 * kBits);
}
__device__ __forceinline__ Tally warp_sum(const Tally& tally) {
  return {__reduce_add_sync(kAllLanes, tally.count), warp_sum(tally.mass)};
}

// Over this lane and those before it.
template <class Integer>
__device__ __forceinline__ Integer warp_scan(Integer value) {
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const Integer other = __shfl_up_sync(kAllLanes, value, offset);
    if (threadIdx.x % kWarpSize >= offset) value += other;
  }
  return value;
}
__device__ __forceinline__ Tally warp_scan(Tally tally) {
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const Tally other = {__shfl_up_sync(kAllLanes, tally.count, offset), __shfl_up_sync(kAllLanes, tally.mass, offset)};
    if (threadIdx.x % kWarpSize >= offset) tally = tally + other;
  }
  return tally;
}

__device__ __forceinline__ Tally shuffle(const Tally& tally, int lane) {
  return {__shfl_sync(kAllLanes, tally.count, lane), __shfl_sync(kAllLanes, tally.mass, lane)};
}

}  // namespace sgl_kernel::SGL_TARGET
