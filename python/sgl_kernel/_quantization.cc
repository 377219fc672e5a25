#include "kernels/quantization/awq_dequantize.h"
#include "kernels/quantization/fp4_quant.h"
#include "kernels/quantization/fp8_quant.h"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/group_quant.h"
#include "python/bind/operators.h"

PYBIND11_MODULE(_quantization, module) {
  using namespace sgl_kernel;
  bind::Operators ops(module);

  ops.def<&sgl_per_tensor_quant_fp8>(
      "sgl_per_tensor_quant_fp8(Tensor input, Tensor! output_q, Tensor! output_s, bool is_static) -> ()");
  module.def("sgl_per_tensor_quant_fp8_workspace_size", &sgl_per_tensor_quant_fp8_workspace_size);
  ops.def<&sgl_per_token_quant_fp8>("sgl_per_token_quant_fp8(Tensor input, Tensor! output_q, Tensor! output_s) -> ()");
  ops.def<&sgl_per_token_group_quant_8bit>(
      "sgl_per_token_group_quant_8bit(Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, "
      "float fp8_min, float fp8_max, bool scale_ue8m0) -> ()");
  ops.def<&sgl_per_token_group_quant_8bit_v2>(
      "sgl_per_token_group_quant_8bit_v2(Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, "
      "float fp8_min, float fp8_max, bool scale_ue8m0, bool fuse_silu_and_mul, Tensor? masked_m) -> ()");

  ops.def<&scaled_fp4_quant>(
      "scaled_fp4_quant(Tensor! output, Tensor! input, Tensor! output_scale, Tensor! input_scale) -> ()");
  ops.def<&scaled_fp4_experts_quant>(
      "scaled_fp4_experts_quant(Tensor! output, Tensor! output_scale, Tensor input, Tensor input_global_scale, Tensor "
      "input_offset_by_experts, Tensor output_scale_offset_by_experts) -> ()");
  ops.def<&silu_and_mul_scaled_fp4_experts_quant>(
      "silu_and_mul_scaled_fp4_experts_quant(Tensor! output, Tensor! output_scale, Tensor input, Tensor "
      "input_global_scale, Tensor mask, bool use_silu_and_mul) -> ()");

  ops.def<&awq_dequantize>("awq_dequantize(Tensor qweight, Tensor scales, Tensor qzeros) -> Tensor");

  ops.def<&ggml_dequantize>("ggml_dequantize(Tensor W, int type, SymInt m, SymInt n, ScalarType? dtype) -> Tensor");
  ops.def<&ggml_mul_mat_vec_a8>("ggml_mul_mat_vec_a8(Tensor W, Tensor X, int type, SymInt row) -> Tensor");
  ops.def<&ggml_mul_mat_a8>("ggml_mul_mat_a8(Tensor W, Tensor X, int type, SymInt row) -> Tensor");
  ops.def<&silu_and_mul_ggml_mul_mat_vec_a8>(
      "silu_and_mul_ggml_mul_mat_vec_a8(Tensor W, Tensor X, int type, SymInt row) -> Tensor");
  ops.def<&add_rmsnorm_ggml_mul_mat_vec_a8>(
      "add_rmsnorm_ggml_mul_mat_vec_a8(Tensor W, Tensor X, Tensor residual, Tensor norm_weight, float eps, int type, "
      "SymInt row) -> (Tensor, Tensor)");
  ops.def<&ggml_moe_a8>(
      "ggml_moe_a8(Tensor X, Tensor W, Tensor sorted_token_ids, Tensor expert_ids, Tensor num_tokens_post_padded, "
      "int type, SymInt row, SymInt top_k, SymInt tokens) -> Tensor");
  ops.def<&ggml_moe_a8_vec>(
      "ggml_moe_a8_vec(Tensor X, Tensor W, Tensor topk_ids, int top_k, int type, SymInt row, SymInt tokens) -> Tensor");
  ops.declare("ggml_moe_get_block_size(int type) -> int");
  module.def("ggml_moe_get_block_size", &ggml_moe_get_block_size);
  const auto kind = [](bool on_cuda) { return on_cuda ? Device::Kind::kCuda : Device::Kind::kCpu; };
  module.def("ggml_workspace_size", [kind](int64_t num_tokens, int64_t k, bool on_cuda) {
    return ggml_workspace_size(num_tokens, k, kind(on_cuda));
  });
  module.def("ggml_mul_mat_vec_workspace_size", [kind](int64_t num_tokens, int64_t k, bool on_cuda) {
    return ggml_mul_mat_vec_workspace_size(num_tokens, k, kind(on_cuda));
  });
}
