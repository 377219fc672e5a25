// The search in one row on the CPU, by one thread: what row.cuh does, and the same results. Blocks of the row whose
// highest value is too low are passed over.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/sampling/mass.h"

namespace sgl_kernel::cpu {

template <class Key, bool kMass>
class Row {
 public:
  // Histograms, made once for many rows.
  struct Scratch {
    std::vector<uint32_t> counts = std::vector<uint32_t>(Key::kLeadingBins);
    std::vector<uint64_t> masses = std::vector<uint64_t>(Key::kLeadingBins);
    std::vector<uint32_t> digit_counts = std::vector<uint32_t>(kDigits);
    std::vector<uint64_t> digit_masses = std::vector<uint64_t>(kDigits);
    std::vector<float> block_peaks;  // the highest value of each kBlock
    std::vector<float> candidates;   // the values of one leading bin
  };

  Row(const float* values, int64_t size, Scratch& scratch) : values_(values), size_(size), scratch_(scratch) {
    const int64_t num_blocks = (size + kBlock - 1) / kBlock;
    scratch_.block_peaks.resize(num_blocks);
    float peak = Key::kLowest;
    for (int64_t block = 0; block < num_blocks; ++block) {
      const float* from = values + block * kBlock;
      float block_peak = Key::kLowest;
      if (size - block * kBlock >= kBlock) {
        // Independent lanes, so that the compiler vectorizes; NaN is not above anything.
        constexpr int kLanes = 16;
        float peaks[kLanes];
        std::fill(peaks, peaks + kLanes, Key::kLowest);
        for (int i = 0; i < kBlock; i += kLanes) {
          for (int lane = 0; lane < kLanes; ++lane) {
            peaks[lane] = from[i + lane] > peaks[lane] ? from[i + lane] : peaks[lane];
          }
        }
        for (float lane_peak : peaks) block_peak = lane_peak > block_peak ? lane_peak : block_peak;
      } else {
        for (int64_t i = 0; i < size - block * kBlock; ++i) block_peak = from[i] > block_peak ? from[i] : block_peak;
      }
      scratch_.block_peaks[block] = Key::clean(block_peak);
      peak = block_peak > peak ? block_peak : peak;
    }
    peak_ = Key::clean(peak);
    leading_ = LeadingBins<Key>::of(Key::key(peak_));
    if (kMass && peak_ >= kLowestPeak) scale_ = mass_scale(peak_);
  }

  float peak() const { return peak_; }
  float scale() const { return scale_; }

  // Counts the values at or above `lowest`, and forgets the others.
  void tally_above(float lowest) {
    lowest_ = lowest;
    std::fill(scratch_.counts.begin(), scratch_.counts.end(), 0);
    std::fill(scratch_.masses.begin(), scratch_.masses.end(), 0);
    for_each_from(lowest, [&](int64_t, float value) {
      const uint32_t bin = leading_.bin(Key::key(value));
      ++scratch_.counts[bin];
      if (kMass) scratch_.masses[bin] += mass(value, scale_);
    });
    for (uint64_t bin_mass : scratch_.masses) total_mass_ += bin_mass;
  }
  void tally() { tally_above(Key::kLowest); }

  uint64_t total_mass() const { return total_mass_; }

  Bin find_by_count(uint64_t count) const { return find(scratch_.counts, scratch_.masses, count, kNoTarget); }
  Bin find_by_mass(uint64_t mass) const { return find(scratch_.counts, scratch_.masses, kNoTarget, mass); }
  Prefix search_by_count(const Bin& bin, uint64_t count) { return search(bin, count, kNoTarget); }
  Prefix search_by_mass(const Bin& bin, uint64_t mass) { return search(bin, kNoTarget, mass); }

  // The place of the prefix's last value: among equals, the prefix holds those of the lowest places.
  int64_t last_of(const Prefix& prefix) const {
    const float last = Key::value(prefix.key);
    uint64_t left = prefix.equals;
    for (size_t block = 0; block < scratch_.block_peaks.size(); ++block) {
      if (scratch_.block_peaks[block] < last) continue;
      const int64_t end = std::min<int64_t>(size_, (block + 1) * kBlock);
      for (int64_t i = block * kBlock; i < end; ++i) {
        if (Key::clean(values_[i]) == last && --left == 0) return i;
      }
    }
    return 0;  // not reached: the prefix is one of this row
  }

 private:
  static constexpr int64_t kBlock = 64;
  static constexpr uint64_t kNoTarget = ~uint64_t{0};

  // body(i, value) for the values from `lowest` up.
  template <class Body>
  void for_each_from(float lowest, Body body) const {
    for (size_t block = 0; block < scratch_.block_peaks.size(); ++block) {
      if (scratch_.block_peaks[block] < lowest) continue;
      const int64_t end = std::min<int64_t>(size_, (block + 1) * kBlock);
      for (int64_t i = block * kBlock; i < end; ++i) {
        const float value = Key::clean(values_[i]);
        if (value >= lowest) body(i, value);
      }
    }
  }

  static Bin find(const std::vector<uint32_t>& counts, const std::vector<uint64_t>& masses, uint64_t count,
                  uint64_t mass) {
    Bin bin;
    for (size_t index = counts.size(); index-- > 0;) {
      if (bin.count_above + counts[index] >= count || bin.mass_above + masses[index] >= mass) {
        bin.found = true;
        bin.index = static_cast<uint32_t>(index);
        bin.mass = masses[index];
        return bin;
      }
      bin.count_above += counts[index];
      bin.mass_above += masses[index];
    }
    return Bin();
  }

  Prefix search(const Bin& leading, uint64_t count, uint64_t mass_target) {
    Prefix prefix;
    const int first_shift = leading_.first_shift(leading.index);
    prefix.key = above_digit(leading_.lowest_key(leading.index), first_shift);
    uint64_t count_above = leading.count_above, mass_above = leading.mass_above;
    Bin bin = leading;
    scratch_.candidates.resize(size_);
    size_t num_candidates = 0;
    // A key below -infinity's has no value but NaN, which max() passes over in this order.
    for_each_from(std::max(lowest_, Key::value(leading_.lowest_key(leading.index))), [&](int64_t, float value) {
      scratch_.candidates[num_candidates] = value;  // without a branch, which would be taken at random
      num_candidates += leading_.bin(Key::key(value)) == leading.index;
    });
    for (int shift = first_shift; shift >= 0; shift -= kDigitBits) {
      std::fill(scratch_.digit_counts.begin(), scratch_.digit_counts.end(), 0);
      std::fill(scratch_.digit_masses.begin(), scratch_.digit_masses.end(), 0);
      for (size_t i = 0; i < num_candidates; ++i) {
        const float value = scratch_.candidates[i];
        const uint32_t key = Key::key(value);
        if (above_digit(key, shift) != prefix.key) continue;
        const uint32_t digit = (key >> shift) % kDigits;
        ++scratch_.digit_counts[digit];
        if (kMass) scratch_.digit_masses[digit] += mass(value, scale_);
      }
      bin = find(scratch_.digit_counts, scratch_.digit_masses, count == kNoTarget ? count : count - count_above,
                 mass_target == kNoTarget ? mass_target : mass_target - mass_above);
      prefix.key = prefix.key << kDigitBits | bin.index;
      count_above += bin.count_above;
      mass_above += bin.mass_above;
    }
    if constexpr (kMass) {
      const uint64_t each = mass(Key::value(prefix.key), scale_);
      prefix.equals = count != kNoTarget ? count - count_above : (mass_target - mass_above + each - 1) / each;
      prefix.mass = mass_above + prefix.equals * each;
      prefix.mass_with_equals = mass_above + bin.mass;
      prefix.alone = bin.mass == each;
    }
    return prefix;
  }

  const float* values_;
  int64_t size_;
  Scratch& scratch_;
  LeadingBins<Key> leading_;
  float peak_ = 0.0f, scale_ = 0.0f, lowest_ = Key::kLowest;
  uint64_t total_mass_ = 0;
};

}  // namespace sgl_kernel::cpu
