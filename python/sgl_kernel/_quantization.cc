#include "kernels/quantization/ggml.h"
#include "python/bind/operators.h"

PYBIND11_MODULE(_quantization, module) {
  using namespace sgl_kernel;
  bind::Operators ops(module);

  ops.def<&ggml_dequantize>("ggml_dequantize(Tensor W, int type, SymInt m, SymInt n, ScalarType? dtype) -> Tensor");
  ops.def<&ggml_mul_mat_vec_a8>("ggml_mul_mat_vec_a8(Tensor W, Tensor X, int type, SymInt row) -> Tensor");
  ops.def<&ggml_mul_mat_a8>("ggml_mul_mat_a8(Tensor W, Tensor X, int type, SymInt row) -> Tensor");
  ops.def<&silu_and_mul_ggml_mul_mat_vec_a8>(
      "silu_and_mul_ggml_mul_mat_vec_a8(Tensor W, Tensor X, int type, SymInt row) -> Tensor");
  ops.def<&add_rmsnorm_ggml_mul_mat_vec_a8>(
      "add_rmsnorm_ggml_mul_mat_vec_a8(Tensor W, Tensor X, Tensor residual, Tensor norm_weight, float eps, int type, "
      "SymInt row) -> (Tensor, Tensor)");
  const auto kind = [](bool on_cuda) { return on_cuda ? Device::Kind::kCuda : Device::Kind::kCpu; };
  module.def("ggml_workspace_size", [kind](int64_t num_tokens, int64_t k, bool on_cuda) {
    return ggml_workspace_size(num_tokens, k, kind(on_cuda));
  });
  module.def("ggml_mul_mat_vec_workspace_size", [kind](int64_t num_tokens, int64_t k, bool on_cuda) {
    return ggml_mul_mat_vec_workspace_size(num_tokens, k, kind(on_cuda));
  });
}
