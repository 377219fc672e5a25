#include "kernels/elementwise/activation.h"
#include "kernels/elementwise/norm.h"
#include "kernels/elementwise/rope.h"
#include "python/bind/operators.h"

PYBIND11_MODULE(_elementwise, module) {
  using namespace sgl_kernel;
  bind::Operators ops(module);

  ops.def<&rmsnorm>("rmsnorm(Tensor! output, Tensor input, Tensor weight, float eps, bool enable_pdl) -> ()");
  ops.def<&fused_add_rmsnorm>(
      "fused_add_rmsnorm(Tensor! input, Tensor! residual, Tensor weight, float eps, bool enable_pdl) -> ()");
  ops.def<&gemma_rmsnorm>(
      "gemma_rmsnorm(Tensor! output, Tensor input, Tensor weight, float eps, bool enable_pdl) -> ()");
  ops.def<&gemma_fused_add_rmsnorm>(
      "gemma_fused_add_rmsnorm(Tensor! input, Tensor! residual, Tensor weight, float eps, bool enable_pdl) -> ()");

  ops.def<&silu_and_mul>("silu_and_mul(Tensor! out, Tensor input) -> ()");
  ops.def<&gelu_tanh_and_mul>("gelu_tanh_and_mul(Tensor! out, Tensor input) -> ()");
  ops.def<&gelu_and_mul>("gelu_and_mul(Tensor! out, Tensor input) -> ()");

  ops.def<&apply_rope_pos_ids_cos_sin_cache>(
      "apply_rope_pos_ids_cos_sin_cache(Tensor q, Tensor k, Tensor! q_rope, Tensor! k_rope, Tensor cos_sin_cache, "
      "Tensor pos_ids, bool interleave, bool enable_pdl, Tensor? v, Tensor!? k_buffer, Tensor!? v_buffer, "
      "Tensor? kv_cache_loc) -> ()");
  ops.def<&rotary_embedding>(
      "rotary_embedding(Tensor positions, Tensor! query, Tensor!? key, int head_size, Tensor cos_sin_cache, "
      "bool is_neox) -> ()");
}
