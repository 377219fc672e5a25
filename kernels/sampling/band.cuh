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
inline constexpr float kMostListed = 0.6f;   // of the list: its parts are not equally full
inline constexpr float kMostSent = 1.0f / 16;

template <class Group, class Key>
__device__ Range Row<Group, Key>::estimate_band(uint32_t count, float top_p, float sum) {
  if (vocab_ <= kMostListed * list_size_) return {Key::kFirst, Key::kEnd};
  // Thread t has the bin `top` - (kThreads - 1) + t: 32 (logits: 64) powers of two from the sampled peak down.
  const int lowest_bin = static_cast<int>(Key::key(sampled_peak_) >> kSampleShift) - (kThreads - 1);
  const int bin = lowest_bin + thread();
  float sampled = 0.0f;
  uint32_t counts[Group::kMaxSize];
#pragma unroll
  for (int rank = 0; rank < Group::kMaxSize; ++rank) {  // all on their way at once
    counts[rank] = bin >= 0 && rank < group_.size() ? group_.remote(histogram_, rank)[bin / 2] : 0;
  }
#pragma unroll
  for (uint32_t count_pair : counts) sampled += static_cast<float>(count_pair >> bin % 2 * 16 & 0xffff);
  float value = 0.0f;  // of the bin's middle, as a multiple of the sampled peak
  if (Key::kHasMass && bin >= 0) value = Key::value((2u * bin + 1) << (kSampleShift - 1)) / sampled_peak_;

  // Of the bins below this one: how many values, their sum, the sum of their squares.
  constexpr int kSums = 3;
  float below[kSums] = {sampled, sampled * value, sampled * value * value};
  if (thread() == 0) shared_.lo_bin = -1, shared_.hi_bin = kThreads;
  float mine[kSums], all_sampled = 0.0f;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    mine[i] = below[i];
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const float other = __shfl_up_sync(kAllLanes, below[i], offset);
      if (lane() >= offset) below[i] += other;
    }
    if (lane() == kWarpSize - 1) shared_.warp_floats[i][warp()] = below[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const float of_warp = of_warps(shared_.warp_floats[i]);
    if (i == 0) all_sampled = warp_reduce<Sum>(of_warp);
    below[i] += warp_reduce<Sum>(lane() < warp() ? of_warp : 0.0f) - mine[i];
  }

  // What would be known if the band began, or ended, at the lower edge of this bin.
  const float fraction = 1.0f / static_cast<float>(sample_every_);
  const float from = all_sampled - below[0];
  bool reached = false, missed = true;
  if (count != Goal::kNoCount) {
    const float expected = static_cast<float>(count) * fraction;
    // `least` is the solution of least - kSigmas * sqrt(least) = expected, or more.
    const float least = expected + kSigmas * sqrtf(expected + kSigmas) + 0.6f * kSigmas * kSigmas;
    reached = from >= least;
    missed = from <= expected - kSigmas * sqrtf(expected);
  }
  if (Key::kHasMass && top_p < 1.0f) {
    const float goal = (1.0f - top_p) * sum / sampled_peak_;
    const float mass = below[1] / fraction, error = kSigmas * sqrtf(fmaxf(below[2], 0.0f)) / fraction;
    reached = reached || (from >= kFewSampled && mass + error <= (1.0f - kSumError) * goal);
    missed = missed && mass - error > (1.0f + kSumError) * goal;
  }
  const int lo_bin = __reduce_max_sync(kAllLanes, reached ? thread() : -1);
  const int hi_bin = __reduce_min_sync(kAllLanes, missed ? thread() : kThreads);
  if (lane() == 0) {
    atomicMax(&shared_.lo_bin, lo_bin);
    atomicMin(&shared_.hi_bin, hi_bin);
  }
  __syncthreads();
  if (thread() == max(shared_.lo_bin, 0)) shared_.sampled_from_lo = shared_.lo_bin < 0 ? all_sampled : from;
  __syncthreads();

  const auto lower_edge = [&](int thread) {
    return max(Key::kFirst, static_cast<uint32_t>(max(lowest_bin + thread, 0)) << kSampleShift);
  };
  // Where the list surely holds all from `lo` up, it had better: no value lies above the band then. But ranks send each
  // other what they list.
  const float most_listed = group_.size() == 1 ? kMostListed : kMostSent;
  const bool whole = shared_.sampled_from_lo <= most_listed * list_size_ * fraction;
  split_ = shared_.hi_bin == kThreads ? Key::kEnd : lower_edge(shared_.hi_bin);
  return {shared_.lo_bin < 0 ? Key::kFirst : lower_edge(shared_.lo_bin), whole ? Key::kEnd : split_};
}

}  // namespace sgl_kernel::SGL_TARGET
