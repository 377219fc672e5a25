#include "kernels/gemm/scaled_mm.h"
#include "python/bind/operators.h"

PYBIND11_MODULE(_gemm, module) {
  using namespace sgl_kernel;
  bind::Operators ops(module);

  ops.def(
      "fp8_scaled_mm(Tensor mat_a, Tensor mat_b, Tensor scales_a, Tensor scales_b, ScalarType out_dtype, Tensor? bias) "
      "-> Tensor",
      &fp8_scaled_mm);
  ops.def(
      "fp8_blockwise_scaled_mm(Tensor mat_a, Tensor mat_b, Tensor scales_a, Tensor scales_b, ScalarType out_dtype) -> "
      "Tensor",
      &fp8_blockwise_scaled_mm);
  ops.def(
      "int8_scaled_mm(Tensor mat_a, Tensor mat_b, Tensor scales_a, Tensor scales_b, ScalarType out_dtype, "
      "Tensor? bias) -> Tensor",
      &int8_scaled_mm);
}
