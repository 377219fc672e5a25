#include "kernels/gemm/fp4_mm.h"
#include "kernels/gemm/qserve_mm.h"
#include "kernels/gemm/scaled_mm.h"
#include "kernels/gemm/skinny_mm.h"
#include "python/bind/operators.h"

PYBIND11_MODULE(_gemm, module) {
  using namespace sgl_kernel;
  bind::Operators ops(module);

  ops.def<&fp8_scaled_mm>(
      "fp8_scaled_mm(Tensor mat_a, Tensor mat_b, Tensor scales_a, Tensor scales_b, ScalarType out_dtype, Tensor? bias) "
      "-> Tensor");
  ops.def<&fp8_blockwise_scaled_mm>(
      "fp8_blockwise_scaled_mm(Tensor mat_a, Tensor mat_b, Tensor scales_a, Tensor scales_b, ScalarType out_dtype) -> "
      "Tensor");
  ops.def<&int8_scaled_mm>(
      "int8_scaled_mm(Tensor mat_a, Tensor mat_b, Tensor scales_a, Tensor scales_b, ScalarType out_dtype, "
      "Tensor? bias) -> Tensor");
  ops.def<&bmm_fp8>(
      "bmm_fp8(Tensor A, Tensor B, Tensor! D, Tensor A_scale, Tensor B_scale, Tensor workspace_buffer, "
      "int cublas_handle) -> ()");

  ops.def<&dsv3_fused_a_gemm>("dsv3_fused_a_gemm(Tensor! output, Tensor mat_a, Tensor mat_b) -> ()");
  ops.def<&dsv3_router_gemm>("dsv3_router_gemm(Tensor! output, Tensor mat_a, Tensor mat_b) -> ()");

  ops.def<&cutlass_scaled_fp4_mm>(
      "cutlass_scaled_fp4_mm(Tensor! out, Tensor a, Tensor b, Tensor block_scale_a, Tensor block_scale_b, Tensor "
      "alpha) "
      "-> ()");

  ops.def<&qserve_w4a8_per_chn_gemm>(
      "qserve_w4a8_per_chn_gemm(Tensor _in_feats, Tensor _kernel, Tensor _wscales, Tensor _ascales, Tensor _w_szs, "
      "Tensor _a_ssums, Tensor! _out_feats) -> ()");
  ops.def<&qserve_w4a8_per_group_gemm>(
      "qserve_w4a8_per_group_gemm(Tensor _in_feats, Tensor _kernel, Tensor _zeros, Tensor _scales_i8, Tensor _wscales, "
      "Tensor _ascales, Tensor! _out_feats) -> ()");
}
