// What reads the row: the sample, and the pass that counts and lists.
#pragma once

#include "kernels/sampling/row.cuh"

namespace sgl_kernel::SGL_TARGET {

template <class Group, class Key>
__device__ void Row<Group, Key>::sample() {
  if (thread() == 0) shared_.sampled_peak = 0;
  for (int i = thread(); i < kHistogramBytes / sizeof(uint32_t); i += kThreads) histogram_[i] = 0;
  __syncthreads();
  // Of each stride other runs of 16 values: rows may be sorted.
  const int first_stride = static_cast<int>(begin_ / kStride);
  const int start = -(first_stride + thread() / 4) & (sample_every_ - 1);
  float peak = Key::kLowest;
  for (int first = start; first < strides_; first += kSampleLoads * sample_every_) {
    Values values[kSampleLoads];
#pragma unroll
    for (int u = 0; u < kSampleLoads; ++u) {
      if (first + u * sample_every_ < strides_) values[u] = load(first + u * sample_every_);
    }
#pragma unroll
    for (int u = 0; u < kSampleLoads; ++u) {
      if (first + u * sample_every_ >= strides_) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t key = Key::key(values[u][j]), bin = key >> kSampleShift;
        peak = fmaxf(peak, values[u][j]);
        if (key >= Key::kFirst) atomicAdd(&histogram_[bin / 2], 1u << bin % 2 * 16);
      }
    }
  }
  const uint32_t peak_key = __reduce_max_sync(kAllLanes, Key::key(peak));
  if (lane() == 0) atomicMax(&shared_.sampled_peak, peak_key);
  __syncthreads();
  wait_for_group();
  if (thread() < group_.size()) {
    group_.remote(&shared_, thread())->sampled_peaks[group_.rank()] = shared_.sampled_peak;
  }
  group_.sync();
  sampled_peak_ = Key::value(__reduce_max_sync(kAllLanes, lane() < group_.size() ? shared_.sampled_peaks[lane()] : 0));
}

template <class Group, class Key>
template <class Body>
__device__ void Row<Group, Key>::gather_once(const Range& band, bool needs_sum, Body body) {
  band_ = band;
  Tally above;
  uint64_t total = 0;
  float peak = Key::kLowest;
  uint32_t listed = 0;  // by this warp
  Entry* const part = part_of(group_.rank(), warp());
  const bool any_above = !lists_peak();
  for_each_started(/*step=*/1, [&](int stride, const Pair& pair) {
    bool in_band[8], lists[2] = {false, false};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float value = pair.values[i / 4][i % 4];
      peak = fmaxf(peak, value);
      in_band[i] = Key::key(value) >= band.lo;
    }
    if (needs_sum) {
#pragma unroll
      for (int i = 0; i < 8; ++i) total += mass_of(pair.values[i / 4][i % 4]);
    }
    if (any_above) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float value = pair.values[i / 4][i % 4];
        const bool is_above = Key::key(value) >= band.hi;
        above.mass += is_above ? mass_of(value) : 0;
        above.count += is_above ? 1 : 0;
        in_band[i] = in_band[i] && !is_above;
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) lists[i / 4] = lists[i / 4] || in_band[i];
    if (__any_sync(kAllLanes, lists[0] || lists[1])) {
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        uint32_t slot = listed;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          slot += __popc(__ballot_sync(kAllLanes, in_band[4 * u + j]) & ((1u << lane()) - 1));
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool is_listed = in_band[4 * u + j];
          if (is_listed && slot < part_size_) part[slot] = {Key::key(pair.values[u][j]), place(stride + u, j)};
          slot += is_listed ? 1 : 0;
        }
        listed = __shfl_sync(kAllLanes, slot, kWarpSize - 1);
      }
    }
    body(stride, pair, lists);
  });
  if (any_above) above = warp_sum(above);
  if (needs_sum) total = warp_sum(total);
  const uint32_t peak_key = __reduce_max_sync(kAllLanes, Key::key(peak));
  wait_for_group();
  if (lane() < group_.size()) {
    group_.remote(&shared_, lane())->gathered[group_.rank()][warp()] = {above, total, listed, peak_key};
  }
  // Each rank gets all of the list.
  __syncwarp();
  for (uint32_t i = lane(); i < min(listed, part_size_); i += kWarpSize) {
    for (int rank = 0; rank < group_.size(); ++rank) {
      if (rank != group_.rank()) group_.remote(part, rank)[i] = part[i];
    }
  }
  group_.sync();
  Gathered all = {Tally(), 0, 0, 0};
  bool fits = true;
  for (int i = lane(); i < group_.size() * kClasses; i += kWarpSize) {
    const Gathered& its = shared_.gathered[i / kClasses][i % kClasses];
    all = {all.above + its.above, all.total + its.total, 0, max(all.peak, its.peak)};
    fits = fits && its.listed <= part_size_;
  }
  above_ = any_above ? warp_sum(all.above) : Tally();
  total_mass_ = needs_sum ? warp_sum(all.total) : 0;
  peak_ = Key::value(__reduce_max_sync(kAllLanes, all.peak));
  fits_ = __all_sync(kAllLanes, fits);
}

}  // namespace sgl_kernel::SGL_TARGET
