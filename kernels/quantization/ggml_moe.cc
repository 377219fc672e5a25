#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/ggml_blocks.h"
#include "kernels/quantization/ggml_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(ggml_multiply_experts);

namespace {

void check_numbers(Check& check, int64_t type, int64_t row, int64_t top_k, int64_t tokens) {
  check
      .that(ggml::type_info(type).block_size != 0, "type", type,
            "2, 3, 6 to 8, 10 to 14, 16 to 23 or 29 (a ggml weight type)")
      .that(row >= 0 && row <= INT32_MAX, "row", row, "0 to 2^31 - 1")
      .that(tokens >= 0 && tokens <= INT32_MAX, "tokens", tokens, "0 to 2^31 - 1")
      .that(top_k >= 1 && top_k <= INT32_MAX, "top_k", top_k, "1 to 2^31 - 1");
  if (!check.ok()) return;
  check.that(tokens * top_k <= INT32_MAX, "tokens * top_k", tokens * top_k, "at most 2^31 - 1");
}

void check_ids(Check& check, const char* name, const TensorView& ids, const TensorView& X, const TensorView& result,
               const TensorView& workspace) {
  check.dtype(name, ids, {DType::kI32})
      .contiguous(name, ids)
      .same_device({{"X", X}, {name, ids}})
      .no_overlap("result", result, name, ids)
      .no_overlap("workspace", workspace, name, ids);
}

// Once the numbers are right.
Status check_matrices(Check& check, const TensorView& result, const TensorView& workspace, const TensorView& X,
                      const TensorView& W, int64_t type, int64_t row, int64_t top_k, int64_t tokens) {
  check.dtype("X", X, {DType::kF16, DType::kBF16, DType::kF32})
      .rank("X", X, 2)
      .dense_last_dim("X", X)
      .dtype("W", W, {DType::kU8})
      .rank("W", W, 3);
  SGL_RETURN_IF_ERROR(check.status());
  const ggml::TypeInfo info = ggml::type_info(type);
  const int64_t k = X.size(1);
  constexpr int64_t kMostK = int64_t{1} << 30;  // kernels count a row's elements and its bytes in 32 bits
  check.shape("X", X, {tokens, Check::kAny}, "tokens, any")
      .that(k % info.block_size == 0, "X.shape[-1]", k, "a multiple of the type's block, 32 or 256")
      .that(k <= kMostK, "X.shape[-1]", k, "at most 2^30");
  SGL_RETURN_IF_ERROR(check.status());
  return check
      .shape("W", W, {Check::kAny, row, k / info.block_size * info.block_bytes},
             "any, row, bytes of k elements of this type; k is that of X")
      .contiguous("W", W)
      .aligned("W", W, 2)
      .same_dtype("result", result, "X", X)
      .shape("result", result, {tokens * top_k, row}, "tokens * top_k, row")
      .dense_last_dim("result", result)
      .no_internal_overlap("result", result)
      .dtype("workspace", workspace, {DType::kU8})
      .rank("workspace", workspace, 1)
      .contiguous("workspace", workspace)
      .aligned("workspace", workspace, 64)
      .that(workspace.num_elements() >= ggml_workspace_size(tokens, k, X.device().kind), "workspace.shape[0]",
            workspace.num_elements(), "at least ggml_workspace_size()")
      .same_device({{"result", result}, {"workspace", workspace}, {"W", W}, {"X", X}})
      .no_overlap("result", result, "W", W)
      .no_overlap("result", result, "X", X)
      .no_overlap("workspace", workspace, "result", result)
      .no_overlap("workspace", workspace, "W", W)
      .no_overlap("workspace", workspace, "X", X)
      .status();
}

}  // namespace

int64_t ggml_moe_get_block_size(int64_t type) { return ggml::type_info(type).block_size == 0 ? 0 : kGgmlMoeBlock; }

Status ggml_moe_a8(TensorView result, TensorView workspace, TensorView X, TensorView W, TensorView sorted_token_ids,
                   TensorView expert_ids, TensorView num_tokens_post_padded, int64_t type, int64_t row, int64_t top_k,
                   int64_t tokens, Stream stream) {
  constexpr char kName[] = "ggml_moe_a8";
  Check check(kName);
  check_numbers(check, type, row, top_k, tokens);
  check_ids(check, "sorted_token_ids", sorted_token_ids, X, result, workspace);
  check_ids(check, "expert_ids", expert_ids, X, result, workspace);
  check_ids(check, "num_tokens_post_padded", num_tokens_post_padded, X, result, workspace);
  SGL_RETURN_IF_ERROR(check.status());
  const int64_t most_pairs = sorted_token_ids.num_elements();
  check.rank("sorted_token_ids", sorted_token_ids, 1)
      .that(most_pairs >= tokens * top_k && most_pairs <= INT32_MAX, "sorted_token_ids.shape[0]", most_pairs,
            "at least tokens * top_k, at most 2^31 - 1")
      .rank("expert_ids", expert_ids, 1)
      .that(expert_ids.num_elements() >= (most_pairs + kGgmlMoeBlock - 1) / kGgmlMoeBlock, "expert_ids.shape[0]",
            expert_ids.num_elements(), "at least sorted_token_ids.shape[0] / 4, rounded up")
      .that(num_tokens_post_padded.num_elements() == 1, "num_tokens_post_padded.numel()",
            num_tokens_post_padded.num_elements(), "1");
  SGL_RETURN_IF_ERROR(check.status());
  SGL_RETURN_IF_ERROR(check_matrices(check, result, workspace, X, W, type, row, top_k, tokens));
  if (result.empty()) return OkStatus();
  const ExpertsCall call = {.operator_name = kName,
                            .result = result,
                            .workspace = workspace,
                            .W = W,
                            .X = X,
                            .type = type,
                            .top_k = top_k,
                            .block = kGgmlMoeBlock,
                            .most_pairs = most_pairs,
                            .pairs = sorted_token_ids.data<const int32_t>(),
                            .num_pairs = num_tokens_post_padded.data<const int32_t>(),
                            .experts = expert_ids.data<const int32_t>()};
  return internal::dispatch(kName, ggml_multiply_experts_targets, result.device(), call, stream);
}

Status ggml_moe_a8_vec(TensorView result, TensorView workspace, TensorView X, TensorView W, TensorView topk_ids,
                       int64_t top_k, int64_t type, int64_t row, int64_t tokens, Stream stream) {
  constexpr char kName[] = "ggml_moe_a8_vec";
  Check check(kName);
  check_numbers(check, type, row, top_k, tokens);
  check_ids(check, "topk_ids", topk_ids, X, result, workspace);
  SGL_RETURN_IF_ERROR(check.status());
  check.that(topk_ids.num_elements() == tokens * top_k, "topk_ids.numel()", topk_ids.num_elements(), "tokens * top_k");
  SGL_RETURN_IF_ERROR(check.status());
  SGL_RETURN_IF_ERROR(check_matrices(check, result, workspace, X, W, type, row, top_k, tokens));
  if (result.empty()) return OkStatus();
  const ExpertsCall call = {.operator_name = kName,
                            .result = result,
                            .workspace = workspace,
                            .W = W,
                            .X = X,
                            .type = type,
                            .top_k = top_k,
                            .block = 1,
                            .most_pairs = tokens * top_k,
                            .pairs = nullptr,
                            .num_pairs = nullptr,
                            .experts = topk_ids.data<const int32_t>()};
  return internal::dispatch(kName, ggml_multiply_experts_targets, result.device(), call, stream);
}

}  // namespace sgl_kernel
