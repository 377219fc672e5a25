// One sample, by a group of blocks: see row.cuh.
#pragma once

#include "kernels/device/pdl.cuh"
#include "kernels/sampling/row.cuh"
#include "kernels/sampling/sample_params.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

template <class Group>
__device__ Kept apply_filters(Row<Group, ProbKey>& row, const Filters& filters) {
  const bool by_count = filters.top_k > 0, by_mass = filters.top_p < 1.0f;
  const bool share_of_top_k = by_count && by_mass && filters.top_k_first;
  Goal goal;
  if (by_count) goal.count = filters.top_k;
  const float top_p = share_of_top_k ? 1.0f : filters.top_p;
  row.sample();
  row.gather(
      top_p < 1.0f, [&](float sum) { return row.estimate_band(goal.count, top_p, sum); }, [](int, const auto&) {});
  if (row.peak() < kLowestPeak) return {};
  if (by_mass && !share_of_top_k) goal.mass = mass_share(filters.top_p, row.total_mass());
  uint32_t lowest = ProbKey::kFirst;
  while (true) {
    const Cut cut = row.search(goal, lowest);
    if (!share_of_top_k || goal.count == Goal::kNoCount) return row.kept(cut, goal);
    goal = {Goal::kNoCount, mass_share(filters.top_p, cut.prefix_mass(goal))};
    lowest = cut.key;
  }
}

// Without other filters: what is no lower than a share of the peak, or all.
template <class Group>
__device__ Kept apply_min_p(Row<Group, ProbKey>& row, const SampleParams& params, int64_t sample) {
  if (params.lowest_kept(sample, kUsualPeak) > 0.0f) {
    row.sample();
    const uint32_t lowest = max(ProbKey::key(params.lowest_kept(sample, row.sampled_peak())), ProbKey::kFirst);
    row.gather(false, [&](float) { return Range{lowest, ProbKey::kEnd}; }, [](int, const auto&) {});
  } else {
    row.start();
    row.gather_all();
  }
  return {ProbKey::key(params.lowest_kept(sample, row.peak()))};
}

template <class Group>
__global__ void __launch_bounds__(kThreads, 1)
    sample_kernel(const __grid_constant__ SampleParams params, const RowShape shape) {
  extern __shared__ __align__(kLineBytes) unsigned char dynamic[];
  wait_for_predecessor();
  const int64_t sample = blockIdx.x >> shape.rank_bits;
  int32_t* output = params.output + sample * params.output_stride;
  const bool writes = (blockIdx.x & (shape.ranks - 1)) == 0 && threadIdx.x == 0;
  const int64_t index = params.row(sample);
  if (index < 0 || index >= params.num_rows) {
    if (writes) *output = -1;
    return;
  }
  Row<Group, ProbKey> row(params.probs + index * params.row_stride, params.vocab, shape, dynamic);
  const Seed seed = params.load_seed();
  const Filters filters = params.filters(sample);
  const bool filtered = filters.top_k > 0 || filters.top_p < 1.0f;
  const Kept kept = filtered ? apply_filters(row, filters) : apply_min_p(row, params, sample);
  if (row.peak() < kLowestPeak) {
    if (writes) *output = 0;
    return;
  }
  row.draw(kept, seed.random(sample), [&](int64_t token) { *output = static_cast<int32_t>(token); });
}

template <class Group>
Status run_sample_tokens(const SampleParams& params, Stream stream) {
  const RowShape shape = row_shape<Group>(params.num_samples, params.vocab);
  const LaunchShape launch_shape = {.grid = static_cast<unsigned>(params.num_samples * shape.ranks),
                                    .block = kThreads,
                                    .shared_bytes = dynamic_bytes<Group>(shape),
                                    .pdl = true,
                                    .cluster = shape.ranks};
  SGL_RETURN_IF_ERROR(allow_shared_memory(params.operator_name, sample_kernel<Group>, launch_shape.shared_bytes));
  return launch(params.operator_name, sample_kernel<Group>, launch_shape, stream, params, shape);
}

}  // namespace
}  // namespace sgl_kernel::SGL_TARGET
