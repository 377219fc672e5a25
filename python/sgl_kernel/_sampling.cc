#include "kernels/sampling/sample.h"
#include "kernels/sampling/threshold.h"
#include "python/bind/operators.h"

PYBIND11_MODULE(_sampling, module) {
  using namespace sgl_kernel;
  bind::Operators ops(module);

  ops.def<&top_k_top_p_sampling_from_probs>(
      "top_k_top_p_sampling_from_probs(Tensor probs, Tensor! output, Tensor? maybe_indices, Tensor? maybe_top_k_arr, "
      "float top_k_val, Tensor? maybe_top_p_arr, float top_p_val, bool deterministic, Generator? gen) -> ()");
  ops.def<&top_k_renorm_top_p_sampling_from_probs>(
      "top_k_renorm_top_p_sampling_from_probs(Tensor probs, Tensor! output, Tensor? maybe_indices, "
      "Tensor? maybe_top_k_arr, int top_k_val, Tensor? maybe_top_p_arr, float top_p_val, bool deterministic, "
      "Generator? gen) -> ()");
  ops.def<&top_p_sampling_from_probs>(
      "top_p_sampling_from_probs(Tensor probs, Tensor! output, Tensor? maybe_indices, Tensor? maybe_top_p_arr, "
      "float top_p_val, bool deterministic, Generator? gen) -> ()");
  ops.def<&min_p_sampling_from_probs>(
      "min_p_sampling_from_probs(Tensor probs, Tensor! output, Tensor? maybe_indices, Tensor? maybe_min_p_arr, "
      "float min_p_val, bool deterministic, Generator? gen) -> ()");

  ops.def<&top_k_renorm_probs>(
      "top_k_renorm_probs(Tensor probs, Tensor! renorm_probs, Tensor? maybe_top_k_arr, int top_k_val) -> ()");
  ops.def<&top_p_renorm_probs>(
      "top_p_renorm_probs(Tensor probs, Tensor! renorm_probs, Tensor? maybe_top_p_arr, float top_p_val) -> ()");
  ops.def<&top_k_mask_logits>(
      "top_k_mask_logits(Tensor logits, Tensor! mask_logits, Tensor? maybe_top_k_arr, int top_k_val) -> ()");
}
