#include "kernels/base/parallel.h"
#include "kernels/sampling/row_cpu.h"
#include "kernels/sampling/threshold_params.h"

namespace sgl_kernel::cpu {
namespace {

using ProbRow = Row<ProbKey>;
using LogitRow = Row<LogitKey>;

void mask_row(const ThresholdParams& params, int64_t index, LogitRow::Scratch& scratch) {
  const float* input = params.input + index * params.input_stride;
  float* output = params.output + index * params.output_stride;
  uint32_t threshold = 0;
  if (const uint32_t k = params.top_k_of(index); k > 0) {
    LogitRow row(input, params.vocab, scratch);
    threshold = row.search({k}).key;
  }
  for (int64_t i = 0; i < params.vocab; ++i) {
    const float value = LogitKey::clean(input[i]);
    output[i] = LogitKey::key(value) >= threshold ? value : LogitKey::kLowest;
  }
}

void renormalize_row(const ThresholdParams& params, int64_t index, ProbRow::Scratch& scratch) {
  const float* input = params.input + index * params.input_stride;
  float* output = params.output + index * params.output_stride;
  ProbRow row(input, params.vocab, scratch);
  float threshold = 0.0f;
  float per_unit = 0.0f;  // what an all-zero row is multiplied by
  if (row.peak() >= kLowestPeak) {
    Cut cut;  // of no filter: the whole row
    cut.above.mass = row.total_mass();
    if (params.threshold == Threshold::kTopKRenorm) {
      if (const uint32_t k = params.top_k_of(index); k > 0) cut = row.search({k});
    } else if (const float p = params.top_p_of(index); p < 1.0f) {
      cut = row.search({Goal::kNoCount, mass_share(p, cut.above.mass)});
    }
    threshold = ProbKey::value(cut.key);
    const uint64_t kept_mass = cut.above.mass + cut.equal.mass;
    per_unit = static_cast<float>(1.0 / static_cast<double>(kept_mass));
  }
  const float scale = row.scale();  // a power of 2: the product with it is exact
  for (int64_t i = 0; i < params.vocab; ++i) {
    const float value = ProbKey::clean(input[i]);
    const float kept = value >= threshold ? value : 0.0f;
    output[i] = kept * scale * per_unit;
  }
}

}  // namespace

Status apply_threshold(const ThresholdParams& params, Stream) {
  parallel_for(params.num_rows, /*grain=*/1, [&](int64_t begin, int64_t end) {
    if (params.threshold == Threshold::kTopKMask) {
      LogitRow::Scratch scratch;
      for (int64_t row = begin; row < end; ++row) mask_row(params, row, scratch);
    } else {
      ProbRow::Scratch scratch;
      for (int64_t row = begin; row < end; ++row) renormalize_row(params, row, scratch);
    }
  });
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
