// One row cut at its threshold, by a group of blocks: see row.cuh.
#pragma once

#include <type_traits>

#include "kernels/device/pdl.cuh"
#include "kernels/sampling/row.cuh"
#include "kernels/sampling/threshold_params.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

// Cuts a row and writes transform(value) of what is kept, with transform = make_transform(cut), and the lowest for the
// rest. Where few values are listed, and what is kept is among them, most sectors of the output are the lowest: they
// are written while the row is read.
template <class Group, class Key, class MakeTransform>
__device__ void cut_row(Row<Group, Key>& row, float* output, const Goal& goal, float top_p, bool in_place,
                        MakeTransform make_transform) {
  row.sample();
  row.gather(
      top_p < 1.0f, [&](float sum) { return row.estimate_band(goal.count, top_p, sum); },
      [&](int stride, const auto& lists) {
        if (!row.lists_few() || in_place) return;
        for (int u = 0; u < 2; ++u) row.write_unlisted(output, stride + u, lists[u]);
      });
  const bool is_mass_goal = top_p < 1.0f;
  const Cut cut = row.search(is_mass_goal ? Goal{goal.count, mass_share(top_p, row.total_mass())} : goal);
  const auto transform = make_transform(cut);
  if (row.lists_from(cut.key) && row.lists_few() && !in_place) {
    row.write_listed(output, cut.key, transform);
  } else if (row.lists_from(cut.key)) {
    row.write_from_list(output, cut.key, transform);
  } else {
    row.write(output, [&](uint32_t key, float value) { return key >= cut.key ? transform(value) : Key::kLowest; });
  }
}

template <class Group>
__device__ void renormalize_row(Row<Group, ProbKey>& row, float* output, uint32_t top_k, float top_p, bool in_place) {
  // scale() is a power of 2: the product with it is exact.
  const auto renormalized = [&](uint64_t kept_mass) {
    const float scale = row.peak() < kLowestPeak ? 0.0f : row.scale();
    const float per_unit = kept_mass == 0 ? 0.0f : static_cast<float>(1.0 / static_cast<double>(kept_mass));
    return [=](float value) { return value * scale * per_unit; };
  };
  if (top_k > 0 || top_p < 1.0f) {
    Goal goal;
    if (top_k > 0) goal.count = top_k;
    cut_row(row, output, goal, top_p, in_place,
            [&](const Cut& cut) { return renormalized(cut.above.mass + cut.equal.mass); });
  } else {
    row.start();
    row.gather_all();
    row.write(output, [f = renormalized(row.total_mass())](uint32_t, float value) { return f(value); });
  }
}

template <class Group>
__device__ void mask_row(Row<Group, LogitKey>& row, float* output, uint32_t top_k, bool in_place) {
  if (top_k > 0) {
    cut_row(row, output, Goal{top_k}, 1.0f, in_place, [](const Cut&) { return [](float value) { return value; }; });
  } else {
    row.write(output, [](uint32_t, float value) { return value; });
  }
}

template <class Group, Threshold kThreshold>
__global__ void __launch_bounds__(kThreads, 1)
    threshold_kernel(const __grid_constant__ ThresholdParams params, const RowShape shape) {
  extern __shared__ __align__(kLineBytes) unsigned char dynamic[];
  wait_for_predecessor();
  using Key = std::conditional_t<kThreshold == Threshold::kTopKMask, LogitKey, ProbKey>;
  const int64_t index = blockIdx.x >> shape.rank_bits;
  const float* input = params.input + index * params.input_stride;
  float* output = params.output + index * params.output_stride;
  Row<Group, Key> row(input, params.vocab, shape, dynamic);
  if constexpr (kThreshold == Threshold::kTopKMask) {
    mask_row(row, output, params.top_k_of(index), input == output);
  } else {
    const bool by_count = kThreshold == Threshold::kTopKRenorm;
    renormalize_row(row, output, by_count ? params.top_k_of(index) : 0, by_count ? 1.0f : params.top_p_of(index),
                    input == output);
  }
  row.finish();
}

template <class Group, Threshold kThreshold>
Status run_threshold(const ThresholdParams& params, Stream stream) {
  const auto kernel = threshold_kernel<Group, kThreshold>;
  const RowShape shape = row_shape<Group>(params.num_rows, params.vocab);
  const LaunchShape launch_shape = {.grid = static_cast<unsigned>(params.num_rows * shape.ranks),
                                    .block = kThreads,
                                    .shared_bytes = dynamic_bytes<Group>(shape),
                                    .pdl = true,
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
