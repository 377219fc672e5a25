#include "kernels/quantization/ggml.h"
#include "python/bind/operators.h"

PYBIND11_MODULE(_quantization, module) {
  using namespace sgl_kernel;
  bind::Operators ops(module);

  ops.def<&ggml_dequantize>("ggml_dequantize(Tensor W, int type, SymInt m, SymInt n, ScalarType? dtype) -> Tensor");
  ops.def<&ggml_mul_mat_vec_a8>("ggml_mul_mat_vec_a8(Tensor W, Tensor X, int type, SymInt row) -> Tensor");
  ops.def<&ggml_mul_mat_a8>("ggml_mul_mat_a8(Tensor W, Tensor X, int type, SymInt row) -> Tensor");
  module.def("ggml_workspace_size", [](int64_t num_tokens, int64_t k, bool on_cuda) {
    return ggml_workspace_size(num_tokens, k, on_cuda ? Device::Kind::kCuda : Device::Kind::kCpu);
  });
}
