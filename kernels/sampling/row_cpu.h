// The search in one row on the CPU, by one thread: what row.cuh does, and the same results. Blocks of the row whose
// highest value is too low are passed over.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/sampling/draw.h"
#include "kernels/sampling/mass.h"

namespace sgl_kernel::cpu {

template <class Key>
class Row {
 public:
  // Made once for many rows.
  struct Scratch {
    std::vector<Tally> bins = std::vector<Tally>(kBins);
    std::vector<float> block_peaks;    // the highest value of each block
    std::vector<uint32_t> candidates;  // the keys of one bin
  };

  Row(const float* values, int64_t size, Scratch& scratch) : values_(values), size_(size), scratch_(scratch) {
    const int64_t num_blocks = (size + kRun - 1) / kRun;
    scratch_.block_peaks.resize(num_blocks);
    float peak = Key::kLowest;
    for (int64_t block = 0; block < num_blocks; ++block) {
      const float* from = values + block * kRun;
      float block_peak = Key::kLowest;
      if (size - block * kRun >= kRun) {
        // Independent lanes, so that the compiler vectorizes; NaN is not above anything.
        constexpr int kLanes = 16;
        float peaks[kLanes];
        std::fill(peaks, peaks + kLanes, Key::kLowest);
        for (int i = 0; i < kRun; i += kLanes) {
          for (int lane = 0; lane < kLanes; ++lane) {
            peaks[lane] = from[i + lane] > peaks[lane] ? from[i + lane] : peaks[lane];
          }
        }
        for (float lane_peak : peaks) block_peak = lane_peak > block_peak ? lane_peak : block_peak;
      } else {
        for (int64_t i = 0; i < size - block * kRun; ++i) block_peak = from[i] > block_peak ? from[i] : block_peak;
      }
      scratch_.block_peaks[block] = Key::clean(block_peak);
      peak = block_peak > peak ? block_peak : peak;
    }
    peak_ = Key::clean(peak);
    if (Key::kHasMass && peak_ >= kLowestPeak) scale_ = mass_scale(peak_, size);
  }

  float peak() const { return peak_; }
  float scale() const { return scale_; }

  uint64_t total_mass() const {
    uint64_t total = 0;
    for_each_from(0, [&](int64_t, uint32_t, float value) { total += mass_of(value); });
    return total;
  }

  // The highest key with which the tally from the top down reaches the goal.
  Cut search(const Goal& goal) {
    uint32_t lo = Key::kFirst, hi = Key::key(peak_) + 1;
    Tally above;
    size_t num_candidates = 0;
    bool listed = false;
    while (lo < hi) {
      int shift = 0;
      while ((hi - 1 - lo) >> shift >= kBins) ++shift;
      std::fill(scratch_.bins.begin(), scratch_.bins.end(), Tally());
      const auto add = [&](uint32_t key) {
        Tally& bin = scratch_.bins[(key - lo) >> shift];
        bin = bin + Tally{1, mass_of(Key::value(key))};
      };
      if (listed) {
        for (size_t i = 0; i < num_candidates; ++i) {
          if (scratch_.candidates[i] >= lo && scratch_.candidates[i] < hi) add(scratch_.candidates[i]);
        }
      } else {
        for_each_from(lo, [&](int64_t, uint32_t key, float) { add(key); });
      }
      uint32_t bin = kBins;
      while (bin-- > 0 && !goal.reached(above + scratch_.bins[bin])) above = above + scratch_.bins[bin];
      if (bin == ~0u) break;
      lo += bin << shift;
      if (shift == 0) return {true, lo, above, scratch_.bins[bin]};
      hi = std::min(hi, lo + (1u << shift));
      if (listed) continue;
      scratch_.candidates.resize(size_);
      for_each_from(lo, [&](int64_t, uint32_t key, float) {
        scratch_.candidates[num_candidates] = key;  // without a branch, which would be taken at random
        num_candidates += key < hi;
      });
      listed = true;
    }
    return {false, Key::kFirst, above, Tally()};
  }

  // The tokens of the prefix: among equals, those of the lowest places.
  Kept kept(const Cut& cut, const Goal& goal) const {
    if (!cut.found) return {cut.key};
    uint32_t left = cut.kept_equals(goal);
    if (left == cut.equal.count) return {cut.key};
    Kept kept = {cut.key};
    for_each_from(cut.key, [&](int64_t i, uint32_t key, float) {
      if (key == cut.key && left > 0 && --left == 0) kept.last = static_cast<uint32_t>(i);
    });
    return kept;
  }

  // The kept token of that draw.
  int64_t draw(const Kept& kept, uint64_t random) const {
    uint64_t masses[kClasses] = {}, total = 0;
    for_each_from(kept.key, [&](int64_t i, uint32_t key, float value) {
      if (kept.has(key, static_cast<uint32_t>(i))) masses[i / kRun % kClasses] += mass_of(value);
    });
    for (uint64_t mass : masses) total += mass;
    uint64_t position = scale_to(random, total);
    int64_t block = 0;
    while (position >= masses[block]) position -= masses[block++];
    for (; block * kRun < size_; block += kClasses) {
      for (int64_t i = block * kRun; i < std::min(size_, (block + 1) * kRun); ++i) {
        const float value = Key::clean(values_[i]);
        if (!kept.has(Key::key(value), static_cast<uint32_t>(i))) continue;
        const uint64_t units = mass_of(value);
        if (position < units) return i;
        position -= units;
      }
    }
    return 0;  // not reached: the position is one of the kept mass
  }

 private:
  static constexpr uint32_t kBins = 1u << 12;

  uint64_t mass_of(float value) const { return Key::kHasMass ? mass(value, scale_) : 0; }

  // body(i, key, value) for the values from that key up, in order.
  template <class Body>
  void for_each_from(uint32_t lowest, Body body) const {
    for (size_t block = 0; block < scratch_.block_peaks.size(); ++block) {
      if (Key::key(scratch_.block_peaks[block]) < lowest) continue;
      const int64_t end = std::min<int64_t>(size_, (block + 1) * kRun);
      for (int64_t i = block * kRun; i < end; ++i) {
        const float value = Key::clean(values_[i]);
        const uint32_t key = Key::key(value);
        if (key >= lowest) body(i, key, value);
      }
    }
  }

  const float* values_;
  int64_t size_;
  Scratch& scratch_;
  float peak_ = 0.0f, scale_ = 0.0f;
};

}  // namespace sgl_kernel::cpu
