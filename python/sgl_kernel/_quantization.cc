#include "kernels/quantization/awq_dequantize.h"
#include "kernels/quantization/fp4_quant.h"
#include "kernels/quantization/fp8_quant.h"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/group_quant.h"
#include "python/bind/operators.h"

PYBIND11_MODULE(_quantization, module) {
  using namespace sgl_kernel;
  bind::Operators ops(module);

  ops.def("sgl_per_tensor_quant_fp8(Tensor input, Tensor! output_q, Tensor! output_s, bool is_static) -> ()",
          &sgl_per_tensor_quant_fp8);
  module.def("sgl_per_tensor_quant_fp8_workspace_size", &sgl_per_tensor_quant_fp8_workspace_size);
  ops.def("sgl_per_token_quant_fp8(Tensor input, Tensor! output_q, Tensor! output_s) -> ()", &sgl_per_token_quant_fp8);
  ops.def(
      "sgl_per_token_group_quant_8bit(Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, "
      "float fp8_min, float fp8_max, bool scale_ue8m0) -> ()",
      &sgl_per_token_group_quant_8bit);
  ops.def(
      "sgl_per_token_group_quant_8bit_v2(Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, "
      "float fp8_min, float fp8_max, bool scale_ue8m0, bool fuse_silu_and_mul, Tensor? masked_m) -> ()",
      &sgl_per_token_group_quant_8bit_v2);

  ops.def("scaled_fp4_quant(Tensor! output, Tensor! input, Tensor! output_scale, Tensor! input_scale) -> ()",
          &scaled_fp4_quant);
  ops.def(
      "scaled_fp4_experts_quant(Tensor! output, Tensor! output_scale, Tensor input, Tensor input_global_scale, Tensor "
      "input_offset_by_experts, Tensor output_scale_offset_by_experts) -> ()",
      &scaled_fp4_experts_quant);
  ops.def(
      "silu_and_mul_scaled_fp4_experts_quant(Tensor! output, Tensor! output_scale, Tensor input, Tensor "
      "input_global_scale, Tensor mask, bool use_silu_and_mul) -> ()",
      &silu_and_mul_scaled_fp4_experts_quant);

  ops.def("awq_dequantize(Tensor qweight, Tensor scales, Tensor qzeros) -> Tensor", &awq_dequantize);

  ops.def("ggml_dequantize(Tensor W, int type, SymInt m, SymInt n, ScalarType? dtype) -> Tensor", &ggml_dequantize);
  ops.def("ggml_mul_mat_vec_a8(Tensor W, Tensor X, int type, SymInt row) -> Tensor", &ggml_mul_mat_vec_a8);
  ops.def("ggml_mul_mat_a8(Tensor W, Tensor X, int type, SymInt row) -> Tensor", &ggml_mul_mat_a8);
  module.def("ggml_workspace_size", [](int64_t num_tokens, int64_t k, bool on_cuda) {
    return ggml_workspace_size(num_tokens, k, on_cuda ? Device::Kind::kCuda : Device::Kind::kCpu);
  });
}
