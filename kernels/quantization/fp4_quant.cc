#include "kernels/quantization/fp4_quant.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/quantization/fp4_quant_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(quantize_fp4);

namespace {

constexpr int64_t kInputAlignment = 16;  // bytes that a thread loads at once
constexpr int64_t kOutputAlignment = 8;  // and stores

// Checks what all have, and fills in `params` but for the experts.
void check_rows(Check& check, const TensorView& output, const TensorView& output_scale, const TensorView& input,
                bool fuse_silu_and_mul, Fp4QuantParams* params) {
  check.rank("input", input, 2)
      .rank("output", output, 2)
      .rank("output_scale", output_scale, 2)
      .dtype("input", input, {DType::kF16, DType::kBF16})
      .dtype("output", output, {DType::kU8})
      .dtype("output_scale", output_scale, {DType::kI32})
      .same_device({{"input", input}, {"output", output}, {"output_scale", output_scale}});
  if (!check.ok()) return;
  const int64_t width = input.size(1), size = fuse_silu_and_mul ? width / 2 : width;
  check.that(size % kFp4Block == 0 && (!fuse_silu_and_mul || width % 2 == 0), "input.shape[1]", width,
             fuse_silu_and_mul ? "a multiple of 32" : "a multiple of 16");
  if (!check.ok()) return;
  params->dtype = input.dtype();
  params->fuse_silu_and_mul = fuse_silu_and_mul;
  params->input = input.data();
  params->output = output.data<uint8_t>();
  params->scales = output_scale.data<uint8_t>();
  params->num_rows = input.size(0);
  params->scale_rows = output_scale.size(0);
  params->num_blocks = size / kFp4Block;
  params->padded_blocks = (params->num_blocks + kScaleTileColumns - 1) / kScaleTileColumns * kScaleTileColumns;
  check.shape("output", output, {input.size(0), size / 2}, "two values a byte")
      .shape("output_scale", output_scale, {Check::kAny, params->padded_blocks / kScaleTileColumns},
             "four scales of 16 values a word")
      .dense_last_dim("input", input)
      .dense_last_dim("output", output)
      .uniform_rows("input", input, &params->input_stride)
      .uniform_rows("output", output, &params->output_stride)
      .contiguous("output_scale", output_scale)
      .aligned("input", input, kInputAlignment)
      .aligned("output", output, kOutputAlignment)
      .no_internal_overlap("output", output)
      .no_overlap("output", output, "input", input)
      .no_overlap("output_scale", output_scale, "input", input)
      .no_overlap("output_scale", output_scale, "output", output);
}

void check_experts(Check& check, const TensorView& output, const TensorView& output_scale, const TensorView& input,
                   const TensorView& global_scale, const TensorView& offsets, const TensorView& scale_offsets,
                   Fp4QuantParams* params) {
  check.rank("input_global_scale", global_scale, 1).dtype("input_global_scale", global_scale, {DType::kF32});
  if (!check.ok()) return;
  const int64_t experts = global_scale.size(0);
  check.that(experts <= INT32_MAX - 1, "input_global_scale.shape[0]", experts, "less than 2^31 - 1");
  const NamedTensor lists[] = {{"input_global_scale", global_scale},
                               {"input_offset_by_experts", offsets},
                               {"output_scale_offset_by_experts", scale_offsets}};
  for (const NamedTensor& list : lists) {
    if (&list != lists) {
      check.dtype(list.name, list.tensor, {DType::kI32})
          .shape(list.name, list.tensor, {experts + 1}, "input_global_scale.shape[0] + 1");
    }
    check.same_device({{"input", input}, list})
        .contiguous(list.name, list.tensor)
        .no_overlap("output", output, list.name, list.tensor)
        .no_overlap("output_scale", output_scale, list.name, list.tensor);
  }
  params->global_scales = global_scale.data<float>();
  params->offsets = offsets.data<int32_t>();
  params->scale_offsets = scale_offsets.data<int32_t>();
  params->num_experts = static_cast<int>(experts);
}

Status run(const Fp4QuantParams& params, Device device, Stream stream) {
  if (params.num_rows == 0 || params.num_blocks == 0 || params.num_experts == 0) return OkStatus();
  return internal::dispatch(params.operator_name, quantize_fp4_targets, device, params, stream);
}

}  // namespace

Status scaled_fp4_quant(TensorView output, TensorView input, TensorView output_scale, TensorView input_scale,
                        Stream stream) {
  Fp4QuantParams params = {};
  params.operator_name = "scaled_fp4_quant";
  Check check(params.operator_name);
  check_rows(check, output, output_scale, input, /*fuse_silu_and_mul=*/false, &params);
  check.dtype("input_scale", input_scale, {DType::kF32})
      .same_device({{"input", input}, {"input_scale", input_scale}})
      .that(input_scale.num_elements() == 1, "input_scale.numel()", input_scale.num_elements(), "1")
      .no_overlap("output", output, "input_scale", input_scale)
      .no_overlap("output_scale", output_scale, "input_scale", input_scale);
  SGL_RETURN_IF_ERROR(check.status());
  const int64_t padded_rows = (params.num_rows + kScaleTileRows - 1) / kScaleTileRows * kScaleTileRows;
  check.that(output_scale.size(0) == padded_rows, "output_scale.shape[0]", output_scale.size(0),
             "input.shape[0] rounded up to a multiple of 128");
  SGL_RETURN_IF_ERROR(check.status());
  params.global_scales = input_scale.data<float>();
  params.num_experts = 1;
  return run(params, input.device(), stream);
}

Status scaled_fp4_experts_quant(TensorView output, TensorView output_scale, TensorView input,
                                TensorView input_global_scale, TensorView input_offset_by_experts,
                                TensorView output_scale_offset_by_experts, Stream stream) {
  Fp4QuantParams params = {};
  params.operator_name = "scaled_fp4_experts_quant";
  Check check(params.operator_name);
  check_rows(check, output, output_scale, input, /*fuse_silu_and_mul=*/false, &params);
  check_experts(check, output, output_scale, input, input_global_scale, input_offset_by_experts,
                output_scale_offset_by_experts, &params);
  SGL_RETURN_IF_ERROR(check.status());
  return run(params, input.device(), stream);
}

Status silu_and_mul_scaled_fp4_experts_quant(TensorView output, TensorView output_scale, TensorView input,
                                             TensorView input_global_scale, TensorView input_offset_by_experts,
                                             TensorView output_scale_offset_by_experts, TensorView mask,
                                             bool use_silu_and_mul, Stream stream) {
  Fp4QuantParams params = {};
  params.operator_name = "silu_and_mul_scaled_fp4_experts_quant";
  Check check(params.operator_name);
  check_rows(check, output, output_scale, input, use_silu_and_mul, &params);
  check_experts(check, output, output_scale, input, input_global_scale, input_offset_by_experts,
                output_scale_offset_by_experts, &params);
  check.dtype("mask", mask, {DType::kI32})
      .shape("mask", mask, {params.num_experts}, "input_global_scale.shape[0]")
      .same_device({{"input", input}, {"mask", mask}})
      .contiguous("mask", mask)
      .no_overlap("output", output, "mask", mask)
      .no_overlap("output_scale", output_scale, "mask", mask);
  SGL_RETURN_IF_ERROR(check.status());
  params.mask = mask.data<int32_t>();
  return run(params, input.device(), stream);
}

}  // namespace sgl_kernel
