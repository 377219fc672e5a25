#include "kernels/sampling/threshold.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/sampling/threshold_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(apply_threshold);

namespace {

using Optional = std::optional<TensorView>;

struct Names {
  const char *input, *output, *array;
};

Status check_and_run(const Names& names, ThresholdParams params, const TensorView& input, const TensorView& output,
                     const Optional& array, std::initializer_list<DType> array_dtypes, Stream stream) {
  Check check(params.operator_name);
  check.rank(names.input, input, 2)
      .dtype(names.input, input, {DType::kF32})
      .dense_last_dim(names.input, input)
      .same_shape(names.output, output, names.input, input)
      .same_dtype(names.output, output, names.input, input)
      .same_device({{names.input, input}, {names.output, output}})
      .dense_last_dim(names.output, output)
      .no_internal_overlap(names.output, output);
  SGL_RETURN_IF_ERROR(check.status());
  const bool in_place = output.data() == input.data() && output.stride(0) == input.stride(0);
  if (!in_place) check.no_overlap(names.output, output, names.input, input);
  if (array.has_value()) {
    check.rank(names.array, *array, 1)
        .dtype(names.array, *array, array_dtypes)
        .shape(names.array, *array, {input.size(0)}, "the number of rows")
        .same_device({{names.input, input}, {names.array, *array}})
        .no_overlap(names.output, output, names.array, *array);
  }
  check.that(input.size(0) <= kMaxRows, "the number of rows", input.size(0), "at most 2^28 - 1")
      .that(input.size(1) <= kMaxVocab, "the vocabulary", input.size(1), "below 2^31 - 3");
  SGL_RETURN_IF_ERROR(check.status());
  if (output.empty()) return OkStatus();

  params.input = input.data<float>();
  params.input_stride = input.stride(0);
  params.output = output.data<float>();
  params.output_stride = output.stride(0);
  params.num_rows = input.size(0);
  params.vocab = input.size(1);
  if (array.has_value() && array->dtype() == DType::kF32) params.top_p_arr = float_array(*array);
  if (array.has_value() && array->dtype() != DType::kF32) params.top_k_arr = int_array(*array);
  return internal::dispatch(params.operator_name, apply_threshold_targets, output.device(), params, stream);
}

Status by_top_k(const char* operator_name, Threshold threshold, const Names& names, const TensorView& input,
                const TensorView& output, const Optional& top_k_arr, int64_t top_k, Stream stream) {
  ThresholdParams params = {};
  params.operator_name = operator_name;
  params.threshold = threshold;
  params.top_k = top_k;
  return check_and_run(names, params, input, output, top_k_arr, {DType::kI32, DType::kI64}, stream);
}

}  // namespace

Status top_k_renorm_probs(TensorView probs, TensorView renorm_probs, const Optional& maybe_top_k_arr, int64_t top_k_val,
                          Stream stream) {
  return by_top_k("top_k_renorm_probs", Threshold::kTopKRenorm, {"probs", "renorm_probs", "maybe_top_k_arr"}, probs,
                  renorm_probs, maybe_top_k_arr, top_k_val, stream);
}

Status top_k_mask_logits(TensorView logits, TensorView mask_logits, const Optional& maybe_top_k_arr, int64_t top_k_val,
                         Stream stream) {
  return by_top_k("top_k_mask_logits", Threshold::kTopKMask, {"logits", "mask_logits", "maybe_top_k_arr"}, logits,
                  mask_logits, maybe_top_k_arr, top_k_val, stream);
}

Status top_p_renorm_probs(TensorView probs, TensorView renorm_probs, const Optional& maybe_top_p_arr, double top_p_val,
                          Stream stream) {
  ThresholdParams params = {};
  params.operator_name = "top_p_renorm_probs";
  params.threshold = Threshold::kTopPRenorm;
  params.top_p = static_cast<float>(top_p_val);
  Check check(params.operator_name);
  SGL_RETURN_IF_ERROR(check.that(top_p_val == top_p_val, "top_p_val", top_p_val, "a number").status());
  return check_and_run({"probs", "renorm_probs", "maybe_top_p_arr"}, params, probs, renorm_probs, maybe_top_p_arr,
                       {DType::kF32}, stream);
}

}  // namespace sgl_kernel
