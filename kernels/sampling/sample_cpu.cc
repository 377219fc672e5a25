#include "kernels/base/parallel.h"
#include "kernels/sampling/row_cpu.h"
#include "kernels/sampling/sample_params.h"

namespace sgl_kernel::cpu {
namespace {

using ProbRow = Row<ProbKey>;

int32_t sample_row(const SampleParams& params, int64_t sample, ProbRow::Scratch& scratch) {
  ProbRow row(params.probs + params.row(sample) * params.row_stride, params.vocab, scratch);
  if (row.peak() < kLowestPeak) return 0;
  const Filters filters = params.filters(sample);
  Kept kept = {ProbKey::key(params.lowest_kept(sample, row.peak()))};
  if (filters.top_k > 0 || filters.top_p < 1.0f) {
    const bool share_of_top_k = filters.top_k > 0 && filters.top_p < 1.0f && filters.top_k_first;
    Goal goal;
    if (filters.top_k > 0) goal.count = filters.top_k;
    if (filters.top_p < 1.0f && !share_of_top_k) goal.mass = mass_share(filters.top_p, row.total_mass());
    Cut cut = row.search(goal);
    if (share_of_top_k) {
      goal = {Goal::kNoCount, mass_share(filters.top_p, cut.prefix_mass(goal))};
      cut = row.search(goal);
    }
    kept = row.kept(cut, goal);
  }
  return static_cast<int32_t>(row.draw(kept, params.load_seed().random(sample)));
}

}  // namespace

Status sample_tokens(const SampleParams& params, Stream) {
  parallel_for(params.num_samples, /*grain=*/1, [&](int64_t begin, int64_t end) {
    ProbRow::Scratch scratch;
    for (int64_t sample = begin; sample < end; ++sample) {
      params.output[sample * params.output_stride] = sample_row(params, sample, scratch);
    }
  });
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
