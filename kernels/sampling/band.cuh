// Between which two keys a prefix of the row ends, estimated from the sample. The estimate only says where gather()
// looks; a wrong one costs time.
//
// Sampled values are counted by the leading bits of their keys, in bins of 4% (logits: 9%) of a value. The number of
// the row's values from a key up is the sample's by its fraction, with a standard deviation of sqrt(sampled) /
// fraction. The highest values of a row, few and maybe most of its mass, are hardly in the sample; but the mass below a
// key comes from many, and the row's sum is known: that of probabilities is 1. So the share is sought from below.
#pragma once

#include "kernels/sampling/row.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr float kSigmas = 3.5f;       // reckoned: one normal error in 2000 is larger
inline constexpr float kFewSampled = 16.0f;  // the fewest from whose values a mass is estimated
inline constexpr float kMostListed = 0.8f;   // of the list: its parts are not equally full
inline constexpr float kMostSent = 1.0f / 16;
inline constexpr float kFew = 1.0f / 64;  // of the row: most sectors of its output hold none of them

template <class Group, class Key>
__device__ Range Row<Group, Key>::estimate_band(uint32_t count, float top_p, float sum) {
  if (lists_all_) return {Key::kFirst, Key::kEnd};
  // Thread t has the bin `top` - (kThreads - 1) + t: 32 (logits: 64) powers of two from the sampled peak down.
  const int lowest_bin = static_cast<int>(Key::key(sampled_peak_) >> kSampleShift) - (kThreads - 1);
  const int bin = lowest_bin + thread();
  uint32_t sampled = 0;
  uint32_t counts[Group::kMaxSize];
#pragma unroll
  for (int rank = 0; rank < Group::kMaxSize; ++rank) {  // all on their way at once
    counts[rank] = bin >= 0 && rank < group_.size() ? group_.remote(histogram_, rank)[bin / 2] : 0;
  }
#pragma unroll
  for (uint32_t count_pair : counts) sampled += count_pair >> (bin & 1) * 16 & 0xffff;
  // Values count as multiples of the sampled peak's power of 2: of the bin's middle, and of the share below the prefix.
  float value = 0.0f, goal = 0.0f;
  if (Key::kHasMass) {
    const float per_peak = float_of_bits(max(1, 2 * 127 - static_cast<int>(bits_of_float(sampled_peak_) >> 23)) << 23);
    if (bin >= 0) value = Key::value((2u * bin + 1) << (kSampleShift - 1)) * per_peak;
    goal = (1.0f - top_p) * sum * per_peak;
  }

  // Of the bins below this one: how many values, their sum, the sum of their squares.
  const float its_sum = static_cast<float>(sampled) * value, its_squares = its_sum * value;
  uint32_t below = sampled;
  float sum_below = its_sum, squares_below = its_squares;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, below, offset);
    const float other_sum = __shfl_up_sync(kAllLanes, sum_below, offset);
    const float other_squares = __shfl_up_sync(kAllLanes, squares_below, offset);
    if (lane() >= offset) below += other, sum_below += other_sum, squares_below += other_squares;
  }
  if (lane() == kWarpSize - 1) {
    shared_.warp_counts[warp()] = below;
    shared_.warp_floats[0][warp()] = sum_below;
    shared_.warp_floats[1][warp()] = squares_below;
  }
  if (thread() == 0) shared_.lo_bin = -1, shared_.hi_bin = kThreads, shared_.sampled_from_lo = ~0u;
  __syncthreads();
  const uint32_t of_warp = of_warps(shared_.warp_counts), all_sampled = __reduce_add_sync(kAllLanes, of_warp);
  below += __reduce_add_sync(kAllLanes, lane() < warp() ? of_warp : 0) - sampled;
  const float sum_of_warp = of_warps(shared_.warp_floats[0]), squares_of_warp = of_warps(shared_.warp_floats[1]);
  sum_below += warp_reduce<Sum>(lane() < warp() ? sum_of_warp : 0.0f) - its_sum;
  squares_below += warp_reduce<Sum>(lane() < warp() ? squares_of_warp : 0.0f) - its_squares;

  // What would be known if the band began, or ended, at the lower edge of this bin. An error is compared as its square.
  constexpr float kVariances = kSigmas * kSigmas;
  const float every = static_cast<float>(sample_every_);
  const float from = static_cast<float>(all_sampled - below);
  bool reached = false, missed = true;
  if (count != Goal::kNoCount) {
    const float expected = static_cast<float>(count) / every;
    // Reached from the solution of least - kSigmas * sqrt(least) = expected, or more.
    const float over = from - expected - 0.6f * kVariances, under = expected - from;
    reached = over >= 0.0f && over * over >= kVariances * (expected + kSigmas);
    missed = under >= 0.0f && under * under >= kVariances * expected;
  }
  if (Key::kHasMass && top_p < 1.0f) {
    const float mass = sum_below * every, variance = kVariances * every * every * fmaxf(squares_below, 0.0f);
    const float under = (1.0f - kSumError) * goal - mass, over = mass - (1.0f + kSumError) * goal;
    reached = reached || (from >= kFewSampled && under >= 0.0f && under * under >= variance);
    missed = missed && over > 0.0f && over * over > variance;
  }
  const uint32_t reached_lanes = __ballot_sync(kAllLanes, reached), missed_lanes = __ballot_sync(kAllLanes, missed);
  if (reached_lanes >> lane() == 1) {  // the highest that reached
    atomicMax(&shared_.lo_bin, thread());
    atomicMin(&shared_.sampled_from_lo, all_sampled - below);  // less at higher bins
  }
  if (missed && (missed_lanes & ((1u << lane()) - 1)) == 0) atomicMin(&shared_.hi_bin, thread());
  __syncthreads();

  const auto lower_edge = [&](int thread) {
    return max(Key::kFirst, static_cast<uint32_t>(max(lowest_bin + thread, 0)) << kSampleShift);
  };
  // Where the list surely holds all from `lo` up, it had better: no value lies above the band then. But ranks send each
  // other what they list.
  const float most_listed = group_.size() == 1 ? kMostListed : kMostSent;
  const uint32_t sampled_from_lo = min(shared_.sampled_from_lo, all_sampled);
  const float values_from_lo = static_cast<float>(sampled_from_lo) * every;
  const bool whole = values_from_lo <= most_listed * list_size_;
  few_ = values_from_lo <= kFew * static_cast<float>(vocab_);
  const uint32_t lo = shared_.lo_bin < 0 ? Key::kFirst : lower_edge(shared_.lo_bin);
  split_ = shared_.hi_bin == kThreads ? Key::kEnd : max(lo, lower_edge(shared_.hi_bin));
  return {lo, whole ? Key::kEnd : split_};
}

}  // namespace sgl_kernel::SGL_TARGET
