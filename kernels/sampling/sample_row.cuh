// One sample, by a group of blocks: see row.cuh.
#pragma once

#include "kernels/sampling/row.cuh"
#include "kernels/sampling/sample_params.h"

namespace sgl_kernel::SGL_TARGET {

template <class Group, bool kResident, bool kCount, int kThreads>
__device__ void sample_row(const SampleParams& params, int64_t sample, int slice_size, unsigned char* dynamic,
                           RowShared& shared) {
  int32_t* output = params.output + sample * params.output_stride;
  const bool writes = Group().rank() == 0 && threadIdx.x == 0;
  const int64_t index = params.row(sample);
  if (index < 0 || index >= params.num_rows) {
    if (writes) *output = -1;
    return;
  }
  Row<Group, ProbKey, kResident, kCount, /*kMass=*/true, kThreads> row(params.probs + index * params.row_stride,
                                                                       params.vocab, slice_size, dynamic, shared);
  row.load();
  if (row.peak() < kLowestPeak) {
    if (writes) *output = 0;
    return;
  }
  const Filters filters = params.filters(sample);
  const float lowest = params.lowest_kept(sample, row.peak());
  if (lowest > 0.0f) {
    row.tally_above(lowest);
  } else {
    // The share of top-k-first is one of the first k tokens' mass, and bounds nothing before that is known.
    const bool share_of_row = filters.top_k == 0 || !filters.top_k_first;
    row.tally(filters.top_k, share_of_row ? filters.top_p : 1.0f);
  }
  const uint64_t target = draw_position(row, filters, params.random(sample)) + 1;
  const Prefix prefix = row.search_by_mass(row.find_by_mass(target), target);
  row.with_last_of(prefix, [&](int64_t token) { *output = static_cast<int32_t>(token); });
  row.finish();
}

}  // namespace sgl_kernel::SGL_TARGET
