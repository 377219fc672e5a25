#include "kernels/quantization/fp8_quant.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/quantization/fp8_quant_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(quantize_tensor_fp8);
SGL_DECLARE_TARGETS(quantize_tokens_fp8);

namespace {

void check_tensors(Check& check, const TensorView& input, const TensorView& output_q, const TensorView& output_s) {
  check.dtype("input", input, {DType::kF16, DType::kBF16, DType::kF32})
      .dtype("output_q", output_q, {DType::kF8E4M3})
      .dtype("output_s", output_s, {DType::kF32})
      .same_shape("output_q", output_q, "input", input)
      .same_device({{"input", input}, {"output_q", output_q}, {"output_s", output_s}})
      .contiguous("output_s", output_s)
      .no_overlap("output_q", output_q, "input", input)
      .no_overlap("output_s", output_s, "input", input)
      .no_overlap("output_s", output_s, "output_q", output_q);
}

}  // namespace

int64_t sgl_per_tensor_quant_fp8_workspace_size() { return kMaxPartialAmaxes * static_cast<int64_t>(sizeof(uint32_t)); }

Status sgl_per_tensor_quant_fp8(TensorView workspace, TensorView input, TensorView output_q, TensorView output_s,
                                bool is_static, Stream stream) {
  const char* name = "sgl_per_tensor_quant_fp8";
  Check check(name);
  check_tensors(check, input, output_q, output_s);
  check.contiguous("input", input)
      .contiguous("output_q", output_q)
      .that(output_s.num_elements() == 1, "output_s.numel()", output_s.num_elements(), "1");
  if (!is_static) {
    check.dtype("workspace", workspace, {DType::kU8})
        .same_device({{"input", input}, {"workspace", workspace}})
        .contiguous("workspace", workspace)
        .aligned("workspace", workspace, sizeof(uint32_t))
        .that(workspace.num_elements() >= sgl_per_tensor_quant_fp8_workspace_size(), "workspace.numel()",
              workspace.num_elements(), "at least sgl_per_tensor_quant_fp8_workspace_size()")
        .no_overlap("workspace", workspace, "input", input)
        .no_overlap("workspace", workspace, "output_q", output_q)
        .no_overlap("workspace", workspace, "output_s", output_s);
  }
  SGL_RETURN_IF_ERROR(check.status());
  if (input.empty()) return OkStatus();
  const TensorQuantParams params = {input.dtype(),
                                    input.data(),
                                    output_q.data<uint8_t>(),
                                    output_s.data<float>(),
                                    is_static ? nullptr : workspace.data<uint32_t>(),
                                    input.num_elements()};
  return internal::dispatch(name, quantize_tensor_fp8_targets, input.device(), params, stream);
}

Status sgl_per_token_quant_fp8(TensorView input, TensorView output_q, TensorView output_s, Stream stream) {
  const char* name = "sgl_per_token_quant_fp8";
  Check check(name);
  check.rank("input", input, 2).rank("output_s", output_s, 1, 2);
  check_tensors(check, input, output_q, output_s);
  SGL_RETURN_IF_ERROR(check.status());
  if (output_s.rank() == 1) {
    check.shape("output_s", output_s, {input.size(0)}, "input.shape[0]");
  } else {
    check.shape("output_s", output_s, {input.size(0), 1}, "input.shape[0], 1");
  }
  int64_t input_stride = 0, output_stride = 0;
  check.dense_last_dim("input", input)
      .dense_last_dim("output_q", output_q)
      .uniform_rows("input", input, &input_stride)
      .uniform_rows("output_q", output_q, &output_stride)
      .no_internal_overlap("output_q", output_q);
  SGL_RETURN_IF_ERROR(check.status());
  if (input.empty()) return OkStatus();
  const TokenQuantParams params = {input.dtype(),          input.data(),  output_q.data<uint8_t>(),
                                   output_s.data<float>(), input.size(0), input.size(1),
                                   input_stride,           output_stride};
  return internal::dispatch(name, quantize_tokens_fp8_targets, input.device(), params, stream);
}

}  // namespace sgl_kernel
