// One row cut at its threshold, by a group of blocks: see row.cuh.
#pragma once

#include "kernels/sampling/row.cuh"
#include "kernels/sampling/threshold_params.h"

namespace sgl_kernel::SGL_TARGET {

template <Threshold kThreshold>
struct ThresholdTraits {
  using Key = ProbKey;
  static constexpr bool kCount = kThreshold == Threshold::kTopKRenorm, kMass = true;
};
template <>
struct ThresholdTraits<Threshold::kTopKMask> {
  using Key = LogitKey;
  static constexpr bool kCount = true, kMass = false;
};

template <class Group, Threshold kThreshold, bool kResident, int kThreads>
__device__ void threshold_row(const ThresholdParams& params, int64_t index, int slice_size, unsigned char* dynamic,
                              RowShared& shared) {
  using Traits = ThresholdTraits<kThreshold>;
  using Key = typename Traits::Key;
  Row<Group, Key, kResident, Traits::kCount, Traits::kMass, kThreads> row(params.input + index * params.input_stride,
                                                                          params.vocab, slice_size, dynamic, shared);
  float* output = params.output + index * params.output_stride;
  row.load();

  if constexpr (kThreshold == Threshold::kTopKMask) {
    uint32_t threshold = 0;
    if (const uint64_t k = params.top_k_of(index); k > 0) {
      row.tally(k, 1.0f);
      threshold = row.search_by_count(row.find_by_count(k), k).key;
    }
    row.write(output, [&](float value) { return Key::key(value) >= threshold ? value : Key::kLowest; });
  } else {
    uint32_t threshold = 0;
    float per_unit = 0.0f;  // what an all-zero row is multiplied by
    if (row.peak() >= kLowestPeak) {
      Prefix kept;
      bool cut = false;
      if constexpr (kThreshold == Threshold::kTopKRenorm) {
        const uint64_t k = params.top_k_of(index);
        row.tally(k, 1.0f);
        if ((cut = k > 0)) kept = row.search_by_count(row.find_by_count(k), k);
      } else {
        const float p = params.top_p_of(index);
        row.tally(0, p);
        if ((cut = p < 1.0f)) {
          const uint64_t target = mass_share(p, row.total_mass());
          kept = row.search_by_mass(row.find_by_mass(target), target);
        }
      }
      threshold = kept.key;
      per_unit = static_cast<float>(1.0 / static_cast<double>(cut ? kept.mass_with_equals : row.total_mass()));
    }
    const float scale = row.scale();  // a power of 2: the product with it is exact
    row.write(output, [&](float value) { return Key::key(value) >= threshold ? value * scale * per_unit : 0.0f; });
  }
  row.finish();
}

}  // namespace sgl_kernel::SGL_TARGET
