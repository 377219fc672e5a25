// One row cut at its threshold, by a group of blocks: see row.cuh.
#pragma once

#include <type_traits>

#include "kernels/sampling/row.cuh"
#include "kernels/sampling/threshold_params.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

// What is searched: the cut, and afterwards row.total_mass() is known.
template <class Group, class Key, class Body>
__device__ Cut find_cut(Row<Group, Key>& row, uint32_t top_k, float top_p, Body body) {
  Goal goal;
  if (top_k > 0) goal.count = top_k;
  const bool filtered = top_k > 0 || top_p < 1.0f;
  row.gather(filtered ? row.estimate_band(goal.count, top_p) : Range{}, body);
  if (!filtered) return {.above = {0, row.total_mass()}};
  if (top_p < 1.0f) goal.mass = mass_share(top_p, row.total_mass());
  return row.search(goal);
}

template <class Group, Threshold kThreshold>
__device__ void renormalize_row(Row<Group, ProbKey>& row, float* output, uint32_t top_k, float top_p, bool in_place) {
  using Values = typename Row<Group, ProbKey>::Values;
  row.load(/*sampled=*/top_k > 0 || top_p < 1.0f);
  if (row.peak() < kLowestPeak) {
    row.write(output, [](uint32_t, float) { return 0.0f; });
    return;
  }
  // Of the first k tokens most of the output is zeros: they are written in the pass that lists the others. That pass is
  // bound by what it reads, the zeros by the memory.
  constexpr uint32_t kMostListed = kListSize / 8;
  const bool zeros_first = kThreshold == Threshold::kTopKRenorm && top_k > 0 && top_k <= kMostListed && !in_place;
  const Cut cut = find_cut(row, top_k, top_p, [&](int stride, Values&) {
    if (zeros_first) row.store(output, stride, Values{});
  });
  const float per_unit = static_cast<float>(1.0 / static_cast<double>(cut.above.mass + cut.equal.mass));
  const float scale = row.scale();  // a power of 2: the product with it is exact
  const auto renormalized = [&](float value) { return value * scale * per_unit; };
  if (zeros_first && row.lists_from(cut.key)) {
    row.write_listed(output, cut.key, renormalized);
  } else {
    row.write(output, [&](uint32_t key, float value) { return key >= cut.key ? renormalized(value) : 0.0f; });
  }
}

template <class Group>
__device__ void mask_row(Row<Group, LogitKey>& row, float* output, uint32_t top_k) {
  row.load(/*sampled=*/top_k > 0);
  uint32_t lowest = 0;
  if (top_k > 0) lowest = find_cut(row, top_k, 1.0f, [](int, auto&) {}).key;
  row.write(output, [&](uint32_t key, float value) { return key >= lowest ? value : LogitKey::kLowest; });
}

template <class Group, Threshold kThreshold>
__global__ void __launch_bounds__(kThreads, 1)
    threshold_kernel(const __grid_constant__ ThresholdParams params, const RowShape shape) {
  extern __shared__ __align__(16) unsigned char dynamic[];
  using Key = std::conditional_t<kThreshold == Threshold::kTopKMask, LogitKey, ProbKey>;
  const int64_t index = blockIdx.x / shape.ranks;
  const float* input = params.input + index * params.input_stride;
  float* output = params.output + index * params.output_stride;
  Row<Group, Key> row(input, params.vocab, shape, dynamic);
  if constexpr (kThreshold == Threshold::kTopKMask) {
    mask_row(row, output, params.top_k_of(index));
  } else {
    const bool by_count = kThreshold == Threshold::kTopKRenorm;
    renormalize_row<Group, kThreshold>(row, output, by_count ? params.top_k_of(index) : 0,
                                       by_count ? 1.0f : params.top_p_of(index), input == output);
  }
  row.finish();
}

template <class Group, Threshold kThreshold>
Status run_threshold(const ThresholdParams& params, Stream stream) {
  const auto kernel = threshold_kernel<Group, kThreshold>;
  const RowShape shape = row_shape<Group>(params.num_rows, params.vocab);
  const LaunchShape launch_shape = {.grid = static_cast<unsigned>(params.num_rows * shape.ranks),
                                    .block = kThreads,
                                    .shared_bytes = dynamic_bytes(shape),
                                    .cluster = shape.ranks};
  SGL_RETURN_IF_ERROR(allow_shared_memory(params.operator_name, kernel, launch_shape.shared_bytes));
  return launch(params.operator_name, kernel, launch_shape, stream, params, shape);
}

template <class Group>
Status run_apply_threshold(const ThresholdParams& params, Stream stream) {
  switch (params.threshold) {
    case Threshold::kTopKRenorm:
      return run_threshold<Group, Threshold::kTopKRenorm>(params, stream);
    case Threshold::kTopPRenorm:
      return run_threshold<Group, Threshold::kTopPRenorm>(params, stream);
    case Threshold::kTopKMask:
      return run_threshold<Group, Threshold::kTopKMask>(params, stream);
  }
  return Internal("apply_threshold: no such threshold");
}

}  // namespace
}  // namespace sgl_kernel::SGL_TARGET
