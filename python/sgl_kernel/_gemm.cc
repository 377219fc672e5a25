#include "kernels/gemm/gptq_gemm.h"
#include "kernels/gemm/marlin_gemm.h"
#include "kernels/gemm/marlin_repack.h"
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

  ops.def("gptq_marlin_repack(Tensor! b_q_weight, Tensor! perm, int size_k, int size_n, int num_bits) -> Tensor",
          &gptq_marlin_repack);
  ops.def("awq_marlin_repack(Tensor! b_q_weight, int size_k, int size_n, int num_bits) -> Tensor", &awq_marlin_repack);
  ops.def(
      "gptq_marlin_gemm(Tensor! a, Tensor!? c_or_none, Tensor! b_q_weight, Tensor! b_scales, "
      "Tensor? global_scale_or_none, Tensor? b_zeros_or_none, Tensor? g_idx_or_none, Tensor? perm_or_none, "
      "Tensor! workspace, int b_q_type_id, int size_m, int size_n, int size_k, bool is_k_full, bool use_atomic_add, "
      "bool use_fp32_reduce, bool is_zp_float) -> Tensor",
      &gptq_marlin_gemm);
  ops.def("gptq_shuffle(Tensor! q_weight, Tensor q_perm, int bit) -> ()", &gptq_shuffle);
  ops.def(
      "gptq_gemm(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, Tensor b_g_idx, "
      "bool use_shuffle, int bit) -> Tensor",
      &gptq_gemm);

  const auto kind = [](bool on_cuda) { return on_cuda ? Device::Kind::kCuda : Device::Kind::kCpu; };
  module.def("gptq_marlin_gemm_workspace_size", [kind](int64_t m, int64_t n, int64_t k, bool gathers, bool on_cuda) {
    return gptq_marlin_gemm_workspace_size(m, n, k, gathers, kind(on_cuda));
  });
  module.def("gptq_gemm_workspace_size", [kind](int64_t m, int64_t n, int64_t k, bool gathers, bool on_cuda) {
    return gptq_gemm_workspace_size(m, n, k, gathers, kind(on_cuda));
  });
}
