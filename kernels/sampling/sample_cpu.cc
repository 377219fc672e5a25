#include <string>

#include "kernels/base/parallel.h"
#include "kernels/sampling/row_cpu.h"
#include "kernels/sampling/sample_params.h"

namespace sgl_kernel::cpu {
namespace {

using ProbRow = Row<ProbKey, /*kMass=*/true>;

int32_t sample_row(const SampleParams& params, int64_t sample, ProbRow::Scratch& scratch) {
  ProbRow row(params.probs + params.row(sample) * params.row_stride, params.vocab, scratch);
  if (row.peak() < kLowestPeak) return 0;
  row.tally_above(params.lowest_kept(sample, row.peak()));
  const uint64_t target = draw_position(row, params.filters(sample), params.random(sample)) + 1;
  return static_cast<int32_t>(row.last_of(row.search_by_mass(row.find_by_mass(target), target)));
}

}  // namespace

Status sample_tokens(const SampleParams& params, Stream) {
  for (int64_t sample = 0; sample < params.num_samples; ++sample) {
    const int64_t row = params.row(sample);
    if (row < 0 || row >= params.num_rows) {
      return InvalidArgument(std::string(params.operator_name) + ": maybe_indices[" + std::to_string(sample) + "] is " +
                             std::to_string(row) + ", expected 0 to " + std::to_string(params.num_rows - 1) +
                             " (= probs.shape[0] - 1)");
    }
  }
  parallel_for(params.num_samples, /*grain=*/1, [&](int64_t begin, int64_t end) {
    ProbRow::Scratch scratch;
    for (int64_t sample = begin; sample < end; ++sample) {
      params.output[sample * params.output_stride] = sample_row(params, sample, scratch);
    }
  });
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
