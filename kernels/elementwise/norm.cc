#include "kernels/elementwise/norm.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/elementwise/norm_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(norm_rows);

namespace {

constexpr float kLlama = 0.0f, kGemma = 1.0f;  // what is added to the weight

// Checks what the four norms share, and fills in all of `params` but the output.
void check_rows(Check& check, const TensorView& input, const TensorView& weight, double eps, NormParams* params) {
  check.rank("input", input, 1, TensorView::kMaxRank)
      .dtype("input", input, {DType::kF16, DType::kBF16, DType::kF32})
      .same_dtype("weight", weight, "input", input)
      .same_device({{"input", input}, {"weight", weight}})
      .dense_last_dim("input", input)
      .uniform_rows("input", input, &params->input.stride)
      .that(eps >= 0.0, "eps", eps, "at least 0");
  if (!check.ok()) return;
  check.shape("weight", weight, {input.size(-1)}, "input.shape[-1]").contiguous("weight", weight);
  params->input.data = input.data();
  params->row_size = input.size(-1);
  params->num_rows = input.empty() ? 0 : input.num_elements() / input.size(-1);
  params->weight = weight.data();
  params->eps = static_cast<float>(eps);
  params->dtype = input.dtype();
}

// Checks a tensor that is written beside `input`: the output, or the residual.
void check_companion(Check& check, const char* name, const TensorView& tensor, const TensorView& input,
                     const TensorView& weight, NormRows* rows) {
  check.same_shape(name, tensor, "input", input)
      .same_dtype(name, tensor, "input", input)
      .same_device({{"input", input}, {name, tensor}})
      .dense_last_dim(name, tensor)
      .uniform_rows(name, tensor, &rows->stride)
      .no_internal_overlap(name, tensor)
      .no_overlap(name, tensor, "weight", weight);
  rows->data = tensor.data();
}

Status normalize(const char* name, const TensorView& output, const TensorView& input, const TensorView& weight,
                 double eps, bool enable_pdl, float weight_offset, Stream stream) {
  Check check(name);
  NormParams params{};
  check_rows(check, input, weight, eps, &params);
  check_companion(check, "output", output, input, weight, &params.output);
  // Row by row in place is fine; a shifted overlap is not.
  const bool in_place = output.data() == input.data() && params.output.stride == params.input.stride;
  if (!in_place) check.no_overlap("output", output, "input", input);
  SGL_RETURN_IF_ERROR(check.status());
  if (input.empty()) return OkStatus();
  params.operator_name = name;
  params.weight_offset = weight_offset;
  params.enable_pdl = enable_pdl;
  return internal::dispatch(name, norm_rows_targets, input.device(), params, stream);
}

Status add_and_normalize(const char* name, const TensorView& input, const TensorView& residual,
                         const TensorView& weight, double eps, bool enable_pdl, float weight_offset, Stream stream) {
  Check check(name);
  NormParams params{};
  check_rows(check, input, weight, eps, &params);
  check_companion(check, "residual", residual, input, weight, &params.residual);
  check.no_internal_overlap("input", input)
      .no_overlap("input", input, "residual", residual)
      .no_overlap("input", input, "weight", weight);
  SGL_RETURN_IF_ERROR(check.status());
  if (input.empty()) return OkStatus();
  params.output = params.input;
  params.operator_name = name;
  params.weight_offset = weight_offset;
  params.enable_pdl = enable_pdl;
  return internal::dispatch(name, norm_rows_targets, input.device(), params, stream);
}

}  // namespace

Status rmsnorm(TensorView output, TensorView input, TensorView weight, double eps, bool enable_pdl, Stream stream) {
  return normalize("rmsnorm", output, input, weight, eps, enable_pdl, kLlama, stream);
}

Status gemma_rmsnorm(TensorView output, TensorView input, TensorView weight, double eps, bool enable_pdl,
                     Stream stream) {
  return normalize("gemma_rmsnorm", output, input, weight, eps, enable_pdl, kGemma, stream);
}

Status fused_add_rmsnorm(TensorView input, TensorView residual, TensorView weight, double eps, bool enable_pdl,
                         Stream stream) {
  return add_and_normalize("fused_add_rmsnorm", input, residual, weight, eps, enable_pdl, kLlama, stream);
}

Status gemma_fused_add_rmsnorm(TensorView input, TensorView residual, TensorView weight, double eps, bool enable_pdl,
                               Stream stream) {
  return add_and_normalize("gemma_fused_add_rmsnorm", input, residual, weight, eps, enable_pdl, kGemma, stream);
}

}  // namespace sgl_kernel
