#include "kernels/attention/flash_attention.h"
#include "kernels/attention/merge_state.h"
#include "python/bind/operators.h"

PYBIND11_MODULE(_attention, module) {
  using namespace sgl_kernel;
  bind::Operators ops(module);

  ops.def<&fwd>(
      "fwd(Tensor q, Tensor! k, Tensor! v, Tensor? k_new, Tensor? v_new, Tensor? q_v, Tensor!? out, "
      "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? seqused_k, "
      "int? max_seqlen_q, int? max_seqlen_k, Tensor? page_table, Tensor? kv_batch_idx, Tensor? leftpad_k, "
      "Tensor? rotary_cos, Tensor? rotary_sin, Tensor? seqlens_rotary, Tensor? q_descale, Tensor? k_descale, "
      "Tensor? v_descale, float? softmax_scale, bool is_causal, int window_size_left, int window_size_right, "
      "int attention_chunk, float softcap, bool is_rotary_interleaved, Tensor? scheduler_metadata, int num_splits, "
      "bool? pack_gqa, int sm_margin, Tensor? sinks) -> (Tensor, Tensor, Tensor, Tensor)");
  module.def("fwd_num_splits", &fwd_num_splits);
  module.def("fwd_num_partials", &fwd_num_partials);
  module.def("fwd_most_merged_splits",
             [](int cuda_device) { return fwd_most_merged_splits({Device::Kind::kCuda, cuda_device}); });

  ops.def<&merge_state>(
      "merge_state(Tensor v_a, Tensor s_a, Tensor v_b, Tensor s_b, Tensor! v_merged, Tensor! s_merged) -> ()");
  ops.def<&merge_state_v2>(
      "merge_state_v2(Tensor v_a, Tensor s_a, Tensor v_b, Tensor s_b, Tensor! v_merged, Tensor! s_merged) -> ()");
}
