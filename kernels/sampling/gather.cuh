// What reads the row: the sample, and the pass that counts and lists.
#pragma once

#include "kernels/sampling/row.cuh"

namespace sgl_kernel::SGL_TARGET {

template <class Group, class Key>
__device__ void Row<Group, Key>::sample() {
  // Of each stride other runs of 16 values: rows may be sorted.
  const int first_stride = static_cast<int>(begin_ / kStride);
  const int start_stride = -(first_stride + thread() / 4) & (sample_every_ - 1);
  const bool is_aligned = reinterpret_cast<uintptr_t>(values_) % sizeof(Values) == 0;
  const auto is_whole = [&](int stride) { return is_aligned && stride < strides_ && place(stride, 3) < vocab_; };
  Values values[kSampleLoads];
  const auto load_some = [&](int first) {
#pragma unroll
    for (int u = 0; u < kSampleLoads; ++u) {
      const int stride = first + u * sample_every_;
      if (is_whole(stride)) {
        const float4 loaded = __ldcg(reinterpret_cast<const float4*>(values_ + offset(stride)));
        values[u] = {loaded.x, loaded.y, loaded.z, loaded.w};
      }
    }
  };
  load_some(start_stride);
  start();  // the sample is not to wait for these
  if (thread() == 0) shared_.sampled_peak = 0;
  for (int i = thread(); i < kHistogramBytes / sizeof(uint32_t); i += kThreads) histogram_[i] = 0;
  __syncthreads();
  float peak = Key::kLowest;
  const auto count = [&](const Values& raw_values) {
    const Values clean_values = clean(raw_values);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t key = Key::key(clean_values[j]), bin = key >> kSampleShift;
      peak = fmaxf(peak, clean_values[j]);
      if (key >= Key::kFirst) atomicAdd(&histogram_[bin / 2], 1u << bin % 2 * 16);
    }
  };
  for (int first = start_stride; is_aligned && first < strides_; first += kSampleLoads * sample_every_) {
#pragma unroll
    for (int u = 0; u < kSampleLoads; ++u) {
      if (is_whole(first + u * sample_every_)) count(values[u]);
    }
    load_some(first + kSampleLoads * sample_every_);
  }
  for (int stride = start_stride; !is_aligned && stride < strides_; stride += sample_every_) count(load(stride));
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
  const bool all_above = band.hi == 0;
  // Values are compared before they are clean: NaN is not above.
  const float lowest = all_above ? NAN : Key::value(band.lo);
  Tally above;
  uint64_t total = 0;
  float peak = Key::kLowest;
  Entry* const part = part_of(group_.rank(), warp());
  Queue& queue = shared_.queues[warp()];
  uint32_t queued = 0, taken = 0, listed = 0;  // by this warp
  // By a lane for each of the first vectors in the queue: lists what is in the band, counts what is above.
  const auto take = [&](uint32_t count) {
    __syncwarp();
    Values values = {Key::kLowest, Key::kLowest, Key::kLowest, Key::kLowest};
    uint32_t first = 0;
    if (lane() < count) {
      values = clean(Values::load(queue.values[(taken + lane()) % kQueueSize]));
      first = queue.places[(taken + lane()) % kQueueSize];
    }
    __syncwarp();
    bool in_band[4];
    uint32_t mine = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t key = Key::key(values[j]);
      if (key >= split_) above = above + Tally{1, mass_of(values[j])};
      in_band[j] = key >= band.lo && key < band.hi;
      mine += in_band[j] ? 1 : 0;
    }
    const uint32_t through = warp_scan(mine);
    const uint32_t all = __shfl_sync(kAllLanes, through, kWarpSize - 1);
    if (listed + all <= part_size_) {
      Entry* slot = part + listed + through - mine;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (in_band[j]) *slot++ = {Key::key(values[j]), first + j};
      }
    }
    listed += all;
    taken += count;
  };
  for_each_started(/*step=*/1, [&](int stride, const Pair& pair) {
    uint32_t lists[2];  // the lanes whose vectors reach the band
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const Values& values = pair.values[u];
      const float highest = fmaxf(fmaxf(values[0], values[1]), fmaxf(values[2], values[3]));
      peak = fmaxf(peak, highest);
      lists[u] = __ballot_sync(kAllLanes, highest >= lowest);
    }
    if (Key::kHasMass && needs_sum) {
#pragma unroll
      for (int i = 0; i < 8; ++i) total += mass_of(fmaxf(pair.values[i / 4][i % 4], 0.0f));
    }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if (lists[u] == 0) continue;
      if (lists[u] >> lane() & 1) {
        const uint32_t slot = (queued + __popc(lists[u] & ((1u << lane()) - 1))) % kQueueSize;
        pair.values[u].store(queue.values[slot]);
        queue.places[slot] = place(stride + u, 0);
      }
      queued += __popc(lists[u]);
      if (queued - taken >= kWarpSize) take(kWarpSize);
    }
    body(stride, lists);
  });
  if (queued != taken) take(queued - taken);
  if (all_above) above = {1, total};  // not counted
  if (split_ < Key::kEnd) above = warp_sum(above);
  if (needs_sum) total = warp_sum(total);
  const uint32_t peak_key = __reduce_max_sync(kAllLanes, Key::key(Key::clean(peak)));
  wait_for_group();
  if (lane() < group_.size()) {
    group_.remote(&shared_, lane())->gathered[group_.rank()][warp()] = {above, total, listed, peak_key};
  }
  // Each rank gets all of the list.
  __syncwarp();
  for (uint32_t i = lane(); group_.size() > 1 && i < min(listed, part_size_); i += kWarpSize) {
    const Entry entry = part[i];
    for (int rank = 0; rank < group_.size(); ++rank) {
      if (rank != group_.rank()) group_.remote(part, rank)[i] = entry;
    }
  }
  group_.sync();
  // Of all ranks and warps, by a warp for each sum.
  const Gathered* const gathered = &shared_.gathered[0][0];
  const int size = group_.size() * kClasses;
  if (warp() == 0) {
    uint32_t highest = 0;
    bool fits = true;
    for (int i = lane(); i < size; i += kWarpSize) {
      highest = max(highest, gathered[i].peak);
      fits = fits && gathered[i].listed <= part_size_;
    }
    highest = __reduce_max_sync(kAllLanes, highest);
    fits = __all_sync(kAllLanes, fits);
    if (lane() == 0) shared_.peak = highest, shared_.fits = fits;
  } else if (warp() == 1 && needs_sum) {
    uint64_t sum = 0;
    for (int i = lane(); i < size; i += kWarpSize) sum += gathered[i].total;
    sum = warp_sum(sum);
    if (lane() == 0) shared_.total = sum;
  } else if (warp() == 2 && split_ < Key::kEnd) {
    Tally sum;
    for (int i = lane(); i < size; i += kWarpSize) sum = sum + gathered[i].above;
    sum = warp_sum(sum);
    if (lane() == 0) shared_.above = sum;
  }
  __syncthreads();
  above_ = split_ < Key::kEnd ? shared_.above : Tally();
  total_mass_ = needs_sum ? shared_.total : 0;
  peak_ = Key::value(shared_.peak);
  fits_ = shared_.fits;
}

}  // namespace sgl_kernel::SGL_TARGET
