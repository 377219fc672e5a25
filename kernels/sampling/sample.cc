#include "kernels/sampling/sample.h"

#include <limits>
#include <string>

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/sampling/sample_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(sample_tokens);

namespace {

using Optional = std::optional<TensorView>;

// A row is searched by at most 8 blocks, and a grid has less than 2^31.
constexpr int64_t kMaxSamples = std::numeric_limits<int32_t>::max() / 8;
constexpr int64_t kMaxVocab = std::numeric_limits<int32_t>::max() - 3;  // rounded up to vectors of 4, still an int

void check_array(Check& check, const char* name, const Optional& array, const TensorView& probs,
                 const TensorView& output, std::initializer_list<DType> dtypes) {
  if (!array.has_value()) return;
  check.rank(name, *array, 1)
      .dtype(name, *array, dtypes)
      .same_device({{"probs", probs}, {name, *array}})
      .no_overlap("output", output, name, *array);
  if (check.ok()) check.shape(name, *array, {output.size(0)}, "output.shape[0]");
}

// The arguments that the operators share; returns params with them.
Status check_common(Check& check, SampleParams* params, const TensorView& probs, const TensorView& output,
                    const Optional& indices, const TensorView& seed) {
  check.rank("probs", probs, 2)
      .dtype("probs", probs, {DType::kF32})
      .dense_last_dim("probs", probs)
      .rank("output", output, 1)
      .dtype("output", output, {DType::kI32})
      .rank("seed", seed, 1)
      .dtype("seed", seed, {DType::kI64})
      .shape("seed", seed, {2})
      .same_device({{"probs", probs}, {"output", output}, {"seed", seed}})
      .no_internal_overlap("output", output)
      .no_overlap("output", output, "probs", probs)
      .no_overlap("output", output, "seed", seed);
  SGL_RETURN_IF_ERROR(check.status());
  if (!indices.has_value()) check.shape("output", output, {probs.size(0)}, "probs.shape[0]");
  check.that(output.empty() || probs.size(1) > 0, "probs.shape[-1]", probs.size(1), "at least 1")
      .that(probs.size(1) <= kMaxVocab, "probs.shape[-1]", probs.size(1), "below 2^31 - 3")
      .that(output.size(0) <= kMaxSamples, "output.shape[0]", output.size(0), "at most 2^28 - 1");
  check_array(check, "maybe_indices", indices, probs, output, {DType::kI32, DType::kI64});
  SGL_RETURN_IF_ERROR(check.status());

  params->probs = probs.data<float>();
  params->row_stride = probs.stride(0);
  params->num_rows = probs.size(0);
  params->vocab = probs.size(1);
  params->output = output.data<int32_t>();
  params->output_stride = output.stride(0);
  params->num_samples = output.size(0);
  params->seed = seed.data<int64_t>();
  params->seed_stride = seed.stride(0);
  if (indices.has_value()) params->indices = int_array(*indices);
  return OkStatus();
}

void take_top_k(Check& check, SampleParams* params, const TensorView& probs, const TensorView& output,
                const Optional& top_k_arr, int64_t top_k) {
  check_array(check, "maybe_top_k_arr", top_k_arr, probs, output, {DType::kI32, DType::kI64});
  if (!check.ok()) return;
  if (top_k_arr.has_value()) params->top_k_arr = int_array(*top_k_arr);
  params->top_k = top_k;
}

void take_top_p(Check& check, SampleParams* params, const TensorView& probs, const TensorView& output,
                const Optional& top_p_arr, double top_p) {
  check.that(top_p == top_p, "top_p_val", top_p, "a number");
  check_array(check, "maybe_top_p_arr", top_p_arr, probs, output, {DType::kF32});
  if (!check.ok()) return;
  if (top_p_arr.has_value()) params->top_p_arr = float_array(*top_p_arr);
  params->top_p = static_cast<float>(top_p);
}

Status run(Check& check, const SampleParams& params, const TensorView& output, Stream stream) {
  SGL_RETURN_IF_ERROR(check.status());
  if (output.empty()) return OkStatus();
  return internal::dispatch(params.operator_name, sample_tokens_targets, output.device(), params, stream);
}

SampleParams no_filter(const char* operator_name) {
  SampleParams params = {};
  params.operator_name = operator_name;
  params.top_p = 1.0f;
  return params;
}

Status top_k_top_p(SampleParams params, const TensorView& probs, const TensorView& output, const Optional& indices,
                   const Optional& top_k_arr, int64_t top_k, const Optional& top_p_arr, double top_p,
                   const TensorView& seed, Stream stream) {
  Check check(params.operator_name);
  SGL_RETURN_IF_ERROR(check_common(check, &params, probs, output, indices, seed));
  take_top_k(check, &params, probs, output, top_k_arr, top_k);
  take_top_p(check, &params, probs, output, top_p_arr, top_p);
  return run(check, params, output, stream);
}

}  // namespace

Status top_k_top_p_sampling_from_probs(TensorView probs, TensorView output, const Optional& maybe_indices,
                                       const Optional& maybe_top_k_arr, double top_k_val,
                                       const Optional& maybe_top_p_arr, double top_p_val, bool /*deterministic*/,
                                       TensorView seed, Stream stream) {
  const SampleParams params = no_filter("top_k_top_p_sampling_from_probs");
  Check check(params.operator_name);
  SGL_RETURN_IF_ERROR(check.that(top_k_val == top_k_val, "top_k_val", top_k_val, "a number").status());
  // Beyond any vocabulary is off, as is below 1.
  const double k = top_k_val < 1 || top_k_val > kMaxVocab ? 0 : top_k_val;
  return top_k_top_p(params, probs, output, maybe_indices, maybe_top_k_arr, static_cast<int64_t>(k), maybe_top_p_arr,
                     top_p_val, seed, stream);
}

Status top_k_renorm_top_p_sampling_from_probs(TensorView probs, TensorView output, const Optional& maybe_indices,
                                              const Optional& maybe_top_k_arr, int64_t top_k_val,
                                              const Optional& maybe_top_p_arr, double top_p_val, bool /*deterministic*/,
                                              TensorView seed, Stream stream) {
  SampleParams params = no_filter("top_k_renorm_top_p_sampling_from_probs");
  params.top_k_first = true;
  return top_k_top_p(params, probs, output, maybe_indices, maybe_top_k_arr, top_k_val, maybe_top_p_arr, top_p_val, seed,
                     stream);
}

Status top_p_sampling_from_probs(TensorView probs, TensorView output, const Optional& maybe_indices,
                                 const Optional& maybe_top_p_arr, double top_p_val, bool /*deterministic*/,
                                 TensorView seed, Stream stream) {
  SampleParams params = no_filter("top_p_sampling_from_probs");
  Check check(params.operator_name);
  SGL_RETURN_IF_ERROR(check_common(check, &params, probs, output, maybe_indices, seed));
  take_top_p(check, &params, probs, output, maybe_top_p_arr, top_p_val);
  return run(check, params, output, stream);
}

Status min_p_sampling_from_probs(TensorView probs, TensorView output, const Optional& maybe_indices,
                                 const Optional& maybe_min_p_arr, double min_p_val, bool /*deterministic*/,
                                 TensorView seed, Stream stream) {
  SampleParams params = no_filter("min_p_sampling_from_probs");
  Check check(params.operator_name);
  SGL_RETURN_IF_ERROR(check_common(check, &params, probs, output, maybe_indices, seed));
  check.that(min_p_val == min_p_val, "min_p_val", min_p_val, "a number");
  check_array(check, "maybe_min_p_arr", maybe_min_p_arr, probs, output, {DType::kF32});
  if (check.ok() && maybe_min_p_arr.has_value()) params.min_p_arr = float_array(*maybe_min_p_arr);
  params.min_p = static_cast<float>(min_p_val);
  return run(check, params, output, stream);
}

}  // namespace sgl_kernel
