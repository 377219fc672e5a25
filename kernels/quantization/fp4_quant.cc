#include "kernels/quantization/fp4_quant.h"

#include <string>

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/quantization/fp4_quant_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(quantize_fp4);

namespace {

constexpr int64_t kInputAlignment = 16;  // bytes that a thread loads at once
constexpr int64_t kOutputAlignment = 8;  // and stores
constexpr int64_t kMostRows = int64_t{1} << 30;

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
  check.that(width <= INT32_MAX, "input.shape[1]", width, "less than 2^31")
      .that(input.size(0) <= kMostRows, "input.shape[0]", input.size(0), "at most 2^30");
  check.that(size % kFp4Block == 0 && (!fuse_silu_and_mul || width % 2 == 0), "input.shape[1]", width,
             fuse_silu_and_mul ? "a multiple of 32" : "a multiple of 16");
  if (!check.ok()) return;
  params->dtype = input.dtype();
  params->fuse_silu_and_mul = fuse_silu_and_mul;
  params->input = input.data();
  params->output = output.data<uint8_t>();
  params->scales = output_scale.data<uint8_t>();
  params->num_groups = 1;
  params->num_rows = static_cast<int>(input.size(0));
  params->num_blocks = static_cast<int>(size / kFp4Block);
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
      .no_overlap("output_scale", output_scale, "output", output)
      .that(output_scale.size(0) <= kMostRows, "output_scale.shape[0]", output_scale.size(0), "at most 2^30");
  params->num_scale_rows = static_cast<int>(output_scale.size(0));
}

// Checks a list that has an element for each expert, or one more.
void check_list(Check& check, const char* name, const TensorView& list, DType dtype, int64_t extent, const char* source,
                const TensorView& output, const TensorView& output_scale, const TensorView& input) {
  check.rank(name, list, 1)
      .dtype(name, list, {dtype})
      .shape(name, list, {extent}, source)
      .same_device({{"input", input}, {name, list}})
      .contiguous(name, list)
      .no_overlap("output", output, name, list)
      .no_overlap("output_scale", output_scale, name, list);
}

int64_t whole_tiles(int64_t rows) { return (rows + kScaleTileRows - 1) / kScaleTileRows * kScaleTileRows; }

// That both lists of offsets ascend and stay within the tensors, if checks_values().
Status check_offsets(const Fp4QuantParams& params, const TensorView& input_offsets, const TensorView& scale_offsets,
                     Stream stream) {
  if (!checks_values(input_offsets.device(), stream)) return OkStatus();
  HostCopy input_copy, scale_copy;
  SGL_RETURN_IF_ERROR(input_copy.take(params.operator_name, input_offsets, stream));
  SGL_RETURN_IF_ERROR(scale_copy.take(params.operator_name, scale_offsets, stream));
  const auto* rows = input_copy.view().data<const int32_t>();
  const auto* scale_rows = scale_copy.view().data<const int32_t>();
  const auto error = [&](const char* name, int index, int64_t is, const char* expected) {
    const std::string element = std::string(name) + "[" + std::to_string(index) + "]";
    return Check(params.operator_name).that(false, element.c_str(), is, expected).status();
  };
  int64_t free = 0;  // the first row of scales behind those of the experts so far
  for (int i = 0; i <= params.num_experts; ++i) {
    const int64_t before = i == 0 ? 0 : rows[i - 1];
    if (rows[i] < before || rows[i] > params.num_rows) {
      return error("input_offset_by_experts", i, rows[i], "ascending, from 0 to input.shape[0]");
    }
    if (i == 0 || rows[i] == before) continue;
    const int64_t first = scale_rows[i - 1];
    if (first < free || first % kScaleTileRows != 0) {
      return error("output_scale_offset_by_experts", i - 1, first,
                   "a multiple of 128, not less than where the scales of the experts before end");
    }
    free = first + whole_tiles(rows[i] - before);
    if (free > params.num_scale_rows) {
      return error("output_scale_offset_by_experts", i - 1, first, "whole tiles of 128 rows within output_scale");
    }
  }
  return OkStatus();
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
  check.that(output_scale.size(0) == whole_tiles(params.num_rows), "output_scale.shape[0]", output_scale.size(0),
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
  check_list(check, "input_global_scale", input_global_scale, DType::kF32, Check::kAny, nullptr, output, output_scale,
             input);
  SGL_RETURN_IF_ERROR(check.status());
  const int64_t experts = input_global_scale.size(0);
  check.that(experts < INT32_MAX, "input_global_scale.shape[0]", experts, "less than 2^31 - 1");
  const char* one_more = "input_global_scale.shape[0] + 1";
  check_list(check, "input_offset_by_experts", input_offset_by_experts, DType::kI32, experts + 1, one_more, output,
             output_scale, input);
  check_list(check, "output_scale_offset_by_experts", output_scale_offset_by_experts, DType::kI32, experts + 1,
             one_more, output, output_scale, input);
  SGL_RETURN_IF_ERROR(check.status());
  params.global_scales = input_global_scale.data<float>();
  params.offsets = input_offset_by_experts.data<int32_t>();
  params.scale_offsets = output_scale_offset_by_experts.data<int32_t>();
  params.num_experts = static_cast<int>(experts);
  if (!input.empty()) {
    SGL_RETURN_IF_ERROR(check_offsets(params, input_offset_by_experts, output_scale_offset_by_experts, stream));
  }
  return run(params, input.device(), stream);
}

Status silu_and_mul_scaled_fp4_experts_quant(TensorView output, TensorView output_scale, TensorView input,
                                             TensorView input_global_scale, TensorView mask, bool use_silu_and_mul,
                                             Stream stream) {
  Fp4QuantParams params = {};
  params.operator_name = "silu_and_mul_scaled_fp4_experts_quant";
  Check check(params.operator_name);
  check_rows(check, output, output_scale, input, use_silu_and_mul, &params);
  check_list(check, "input_global_scale", input_global_scale, DType::kF32, Check::kAny, nullptr, output, output_scale,
             input);
  SGL_RETURN_IF_ERROR(check.status());
  const int64_t experts = input_global_scale.size(0), rows = input.size(0);
  check.that(experts < INT32_MAX, "input_global_scale.shape[0]", experts, "less than 2^31 - 1");
  check_list(check, "mask", mask, DType::kI32, experts, "input_global_scale.shape[0]", output, output_scale, input);
  check.that(rows == 0 || (experts > 0 && rows % experts == 0), "input.shape[0]", rows,
             "a multiple of input_global_scale.shape[0]");
  SGL_RETURN_IF_ERROR(check.status());
  if (rows == 0) return OkStatus();
  params.num_groups = params.num_experts = static_cast<int>(experts);
  params.num_rows = static_cast<int>(rows / experts);
  params.num_scale_rows = static_cast<int>(whole_tiles(params.num_rows));
  check.that(output_scale.size(0) == experts * params.num_scale_rows, "output_scale.shape[0]", output_scale.size(0),
             "the experts' rows, of each rounded up to a multiple of 128");
  SGL_RETURN_IF_ERROR(check.status());
  params.global_scales = input_global_scale.data<float>();
  params.mask = mask.data<int32_t>();
  return run(params, input.device(), stream);
}

}  // namespace sgl_kernel
