#include "kernels/elementwise/activation.h"
#include "kernels/elementwise/norm.h"
#include "kernels/elementwise/rope.h"
#include "python/bind/operators.h"

PYBIND11_MODULE(_elementwise, module) {
  using namespace sgl_kernel;
  bind::Operators ops(module);

  ops.def("rmsnorm(Tensor! output, Tensor input, Tensor weight, float eps, bool enable_pdl) -> ()", &rmsnorm);
  ops.def("fused_add_rmsnorm(Tensor! input, Tensor! residual, Tensor weight, float eps, bool enable_pdl) -> ()",
          &fused_add_rmsnorm);
  ops.def("gemma_rmsnorm(Tensor! output, Tensor input, Tensor weight, float eps, bool enable_pdl) -> ()",
          &gemma_rmsnorm);
  ops.def("gemma_fused_add_rmsnorm(Tensor! input, Tensor! residual, Tensor weight, float eps, bool enable_pdl) -> ()",
          &gemma_fused_add_rmsnorm);

  ops.def("silu_and_mul(Tensor! out, Tensor input) -> ()", &silu_and_mul);
  ops.def("gelu_tanh_and_mul(Tensor! out, Tensor input) -> ()", &gelu_tanh_and_mul);
  ops.def("gelu_and_mul(Tensor! out, Tensor input) -> ()", &gelu_and_mul);

  ops.def(
      "apply_rope_pos_ids_cos_sin_cache(Tensor q, Tensor k, Tensor! q_rope, Tensor! k_rope, Tensor cos_sin_cache, "
      "Tensor pos_ids, bool interleave, bool enable_pdl, Tensor? v, Tensor!? k_buffer, Tensor!? v_buffer, "
      "Tensor? kv_cache_loc) -> ()",
      &apply_rope_pos_ids_cos_sin_cache);
  ops.def(
      "rotary_embedding(Tensor positions, Tensor! query, Tensor!? key, int head_size, Tensor cos_sin_cache, "
      "bool is_neox) -> ()",
      &rotary_embedding);
}
