#include "kernels/attention/merge_state.h"

#include "kernels/attention/merge_state_params.h"
#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(merge_states);

namespace {

PerHead per_head(const TensorView& tensor) { return {tensor.data(), tensor.stride(0), tensor.stride(1)}; }

bool same_memory(const TensorView& a, const TensorView& b) {
  return a.data() == b.data() && a.stride(0) == b.stride(0) && a.stride(1) == b.stride(1);
}

Status check_and_run(const char* operator_name, float log2_base, const TensorView& v_a, const TensorView& s_a,
                     const TensorView& v_b, const TensorView& s_b, const TensorView& v_merged,
                     const TensorView& s_merged, Stream stream) {
  Check check(operator_name);
  check.rank("v_a", v_a, 3).dtype("v_a", v_a, {DType::kF16, DType::kBF16, DType::kF32});
  SGL_RETURN_IF_ERROR(check.status());
  for (const NamedTensor& v : {NamedTensor{"v_b", v_b}, NamedTensor{"v_merged", v_merged}}) {
    check.same_dtype(v.name, v.tensor, "v_a", v_a).same_shape(v.name, v.tensor, "v_a", v_a);
  }
  for (const NamedTensor& s : {NamedTensor{"s_a", s_a}, NamedTensor{"s_b", s_b}, NamedTensor{"s_merged", s_merged}}) {
    check.dtype(s.name, s.tensor, {DType::kF32}).shape(s.name, s.tensor, {v_a.size(0), v_a.size(1)}, "v_a.shape[:2]");
  }
  check.dense_last_dim("v_a", v_a)
      .dense_last_dim("v_b", v_b)
      .dense_last_dim("v_merged", v_merged)
      .same_device(
          {{"v_a", v_a}, {"s_a", s_a}, {"v_b", v_b}, {"s_b", s_b}, {"v_merged", v_merged}, {"s_merged", s_merged}})
      .no_internal_overlap("v_merged", v_merged)
      .no_internal_overlap("s_merged", s_merged);
  SGL_RETURN_IF_ERROR(check.status());
  check.that(v_a.size(2) > 0, "v_a.shape[2]", v_a.size(2), "at least 1")
      .that(v_a.size(1) * v_a.size(2) <= INT32_MAX, "v_a", v_a.size(1) * v_a.size(2), "less than 2^31 numbers a token");
  if (!same_memory(v_merged, v_a)) check.no_overlap("v_merged", v_merged, "v_a", v_a);
  if (!same_memory(v_merged, v_b)) check.no_overlap("v_merged", v_merged, "v_b", v_b);
  check.no_overlap("v_merged", v_merged, "s_a", s_a)
      .no_overlap("v_merged", v_merged, "s_b", s_b)
      .no_overlap("v_merged", v_merged, "s_merged", s_merged)
      .no_overlap("s_merged", s_merged, "s_a", s_a)
      .no_overlap("s_merged", s_merged, "s_b", s_b)
      .no_overlap("s_merged", s_merged, "v_a", v_a)
      .no_overlap("s_merged", s_merged, "v_b", v_b);
  SGL_RETURN_IF_ERROR(check.status());
  if (s_a.empty()) return OkStatus();

  const MergeStateParams params = {operator_name,      log2_base,     v_a.dtype(),   v_a.size(0),
                                   v_a.size(1),        v_a.size(2),   per_head(v_a), per_head(v_b),
                                   per_head(v_merged), per_head(s_a), per_head(s_b), per_head(s_merged)};
  return internal::dispatch(operator_name, merge_states_targets, v_a.device(), params, stream);
}

}  // namespace

Status merge_state(TensorView v_a, TensorView s_a, TensorView v_b, TensorView s_b, TensorView v_merged,
                   TensorView s_merged, Stream stream) {
  return check_and_run("merge_state", /*log2_base=*/1.0f, v_a, s_a, v_b, s_b, v_merged, s_merged, stream);
}

Status merge_state_v2(TensorView v_a, TensorView s_a, TensorView v_b, TensorView s_b, TensorView v_merged,
                      TensorView s_merged, Stream stream) {
  constexpr float kLog2E = 1.4426950408889634f;
  return check_and_run("merge_state_v2", kLog2E, v_a, s_a, v_b, s_b, v_merged, s_merged, stream);
}

}  // namespace sgl_kernel
