#include "kernels/gemm/fp4_mm.h"
#include "kernels/gemm/gptq_gemm.h"
#include "kernels/gemm/marlin_gemm.h"
#include "kernels/gemm/marlin_repack.h"
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

  ops.def<&gptq_marlin_repack>(
      "gptq_marlin_repack(Tensor! b_q_weight, Tensor! perm, int size_k, int size_n, int num_bits) -> Tensor");
  ops.def<&awq_marlin_repack>("awq_marlin_repack(Tensor! b_q_weight, int size_k, int size_n, int num_bits) -> Tensor");
  ops.def<&gptq_marlin_gemm>(
      "gptq_marlin_gemm(Tensor! a, Tensor!? c_or_none, Tensor! b_q_weight, Tensor! b_scales, "
      "Tensor? global_scale_or_none, Tensor? b_zeros_or_none, Tensor? g_idx_or_none, Tensor? perm_or_none, "
      "Tensor! workspace, int b_q_type_id, int size_m, int size_n, int size_k, bool is_k_full, bool use_atomic_add, "
      "bool use_fp32_reduce, bool is_zp_float) -> Tensor");
  ops.def<&gptq_shuffle>("gptq_shuffle(Tensor! q_weight, Tensor q_perm, int bit) -> ()");
  ops.def<&gptq_gemm>(
      "gptq_gemm(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, Tensor b_g_idx, "
      "bool use_shuffle, int bit) -> Tensor");

  const auto kind = [](bool on_cuda) { return on_cuda ? Device::Kind::kCuda : Device::Kind::kCpu; };
  module.def("gptq_marlin_gemm_workspace_size", [kind](int64_t m, int64_t n, int64_t k, bool gathers, bool on_cuda) {
    return gptq_marlin_gemm_workspace_size(m, n, k, gathers, kind(on_cuda));
  });
  module.def("cutlass_scaled_fp4_mm_workspace_size", [kind](int64_t m, int64_t k, bool on_cuda) {
    return cutlass_scaled_fp4_mm_workspace_size(m, k, kind(on_cuda));
  });
  module.def("gptq_gemm_workspace_size", [kind](int64_t m, int64_t n, int64_t k, bool gathers, bool on_cuda) {
    return gptq_gemm_workspace_size(m, n, k, gathers, kind(on_cuda));
  });
}
