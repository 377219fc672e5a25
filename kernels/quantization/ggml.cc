#include "kernels/quantization/ggml.h"

#include <algorithm>
#include <bit>

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/quantization/ggml_blocks.h"
#include "kernels/quantization/ggml_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(ggml_dequantize);
SGL_DECLARE_TARGETS(ggml_mul_mat_vec);
SGL_DECLARE_TARGETS(ggml_mul_mat_a8);

namespace {

constexpr char kKnownTypes[] = "2, 3, 6 to 8, 10 to 14, 16 to 23 or 29 (a ggml weight type)";

const char* block_multiple(const ggml::TypeInfo& info) {
  return info.block_size == 32 ? "a multiple of 32 (a block of this type)" : "a multiple of 256 (a block of this type)";
}

int64_t bytes_of_row(const ggml::TypeInfo& info, int64_t elements) {
  return elements / info.block_size * info.block_bytes;
}

// `x_parts`: how many times k elements a row of X has. workspace_bytes is ggml_workspace_size() or its companion.
Status check_mul_mat(const char* name, const TensorView& result, const TensorView& workspace, const TensorView& W,
                     const TensorView& X, int64_t type, int64_t row, int x_parts,
                     int64_t (*workspace_bytes)(int64_t, int64_t, Device::Kind)) {
  const ggml::TypeInfo info = ggml::type_info(type);
  Check check(name);
  check.that(info.block_size != 0, "type", type, kKnownTypes)
      .that(row >= 0, "row", row, "at least 0")
      .dtype("X", X, {DType::kF16, DType::kBF16, DType::kF32})
      .rank("X", X, 2)
      .dense_last_dim("X", X)
      .dtype("W", W, {DType::kU8});
  if (!check.ok()) return check.status();
  const int64_t num_tokens = X.size(0), k = X.size(1) / x_parts;
  constexpr int64_t kMostK = int64_t{1} << 30;  // kernels count a row's elements and its bytes in 32 bits
  check.that(X.size(1) % x_parts == 0, "X.shape[-1]", X.size(1), "an even extent: gate and up")
      .that(k % info.block_size == 0, "X.shape[-1]", X.size(1),
            x_parts == 1 ? block_multiple(info) : "twice a multiple of the type's block")
      .that(k <= kMostK, "X.shape[-1]", X.size(1), "at most 2^30 for each row of W");
  if (!check.ok()) return check.status();
  check.shape("W", W, {row, bytes_of_row(info, k)}, "row, bytes of k elements of this type; k is that of X")
      .contiguous("W", W)
      .aligned("W", W, 2)
      .same_dtype("result", result, "X", X)
      .shape("result", result, {num_tokens, row}, "X.shape[0], row")
      .dense_last_dim("result", result)
      .no_internal_overlap("result", result)
      .dtype("workspace", workspace, {DType::kU8})
      .rank("workspace", workspace, 1)
      .contiguous("workspace", workspace)
      .aligned("workspace", workspace, 64)
      .same_device({{"result", result}, {"workspace", workspace}, {"W", W}, {"X", X}})
      .no_overlap("result", result, "W", W)
      .no_overlap("result", result, "X", X)
      .no_overlap("workspace", workspace, "result", result)
      .no_overlap("workspace", workspace, "W", W)
      .no_overlap("workspace", workspace, "X", X);
  if (!check.ok()) return check.status();
  return check
      .that(workspace.num_elements() >= workspace_bytes(num_tokens, k, X.device().kind), "workspace.shape[0]",
            workspace.num_elements(), "at least what its size function says")
      .status();
}

}  // namespace

int64_t ggml_workspace_size(int64_t num_tokens, int64_t k, Device::Kind kind) {
  if (num_tokens <= 0 || k <= 0) return 0;
  const int64_t groups = k / 32;
  // The CPU: a group of 32 elements as 32 bytes, its scale and three sums of f32; tokens in tiles of 16.
  if (kind == Device::Kind::kCpu) return (num_tokens + 15) / 16 * 16 * groups * 48;
  // CUDA: a group as 32 bytes, its scale and two sums of 16 bits. On Hopper a group of f16 in tiles of 16 to 128 tokens
  // by 4 groups, and a factor for each token: no tile of ggml_mul_mat_sm90a.cu has more tokens than this one.
  const int64_t tile = std::bit_ceil(static_cast<uint64_t>(std::clamp<int64_t>(num_tokens, 16, 128)));
  return (num_tokens + tile - 1) / tile * tile * ((groups + 3) / 4 * 256 + 4);
}

int64_t ggml_mul_mat_vec_workspace_size(int64_t num_tokens, int64_t k, Device::Kind kind) {
  const int64_t bytes = ggml_workspace_size(num_tokens, k, kind);
  // The CPU makes what is multiplied first, and keeps it behind the rest; CUDA does so for many rows, with nothing else
  // to keep.
  const int64_t made = bytes > 0 ? num_tokens * k * int64_t{sizeof(float)} : 0;
  return kind == Device::Kind::kCpu ? bytes + made : std::max(bytes, made);
}

Status ggml_dequantize(TensorView result, TensorView W, int64_t type, int64_t m, int64_t n, Stream stream) {
  const ggml::TypeInfo info = ggml::type_info(type);
  Check check("ggml_dequantize");
  check.that(info.block_size != 0, "type", type, kKnownTypes).that(m >= 0, "m", m, "at least 0");
  if (!check.ok()) return check.status();
  check.that(n >= 0 && n % info.block_size == 0, "n", n, block_multiple(info))
      .dtype("result", result, {DType::kF16, DType::kBF16, DType::kF32})
      .shape("result", result, {m, n}, "m, n")
      .contiguous("result", result)
      .dtype("W", W, {DType::kU8})
      .contiguous("W", W)
      .aligned("W", W, 2)
      .same_device({{"result", result}, {"W", W}})
      .no_overlap("result", result, "W", W);
  if (!check.ok()) return check.status();
  check.that(W.num_elements() == m * bytes_of_row(info, n), "W.numel()", W.num_elements(),
             "the bytes of m * n elements of this type");
  if (!check.ok()) return check.status();
  if (result.empty()) return OkStatus();
  return SGL_DISPATCH(ggml_dequantize, result.device(), result, W, type, m, n, stream);
}

Status ggml_mul_mat_vec_a8(TensorView result, TensorView workspace, TensorView W, TensorView X, int64_t type,
                           int64_t row, Stream stream) {
  constexpr char kName[] = "ggml_mul_mat_vec_a8";
  SGL_RETURN_IF_ERROR(check_mul_mat(kName, result, workspace, W, X, type, row, /*x_parts=*/1, ggml_workspace_size));
  if (result.empty()) return OkStatus();
  const MatVecCall call = {.operator_name = kName,
                           .input = VecInput::kAsItIs,
                           .result = result,
                           .workspace = workspace,
                           .W = W,
                           .X = X,
                           .type = type,
                           .k = X.size(1)};
  return internal::dispatch(kName, ggml_mul_mat_vec_targets, result.device(), call, stream);
}

Status silu_and_mul_ggml_mul_mat_vec_a8(TensorView result, TensorView workspace, TensorView W, TensorView X,
                                        int64_t type, int64_t row, Stream stream) {
  constexpr char kName[] = "silu_and_mul_ggml_mul_mat_vec_a8";
  SGL_RETURN_IF_ERROR(
      check_mul_mat(kName, result, workspace, W, X, type, row, /*x_parts=*/2, ggml_mul_mat_vec_workspace_size));
  Check check(kName);
  check.that(X.size(1) / 2 <= kMostSiluElements, "X.shape[-1]", X.size(1), "at most 131072");
  SGL_RETURN_IF_ERROR(check.status());
  if (result.empty()) return OkStatus();
  const MatVecCall call = {.operator_name = kName,
                           .input = VecInput::kSiluAndMul,
                           .result = result,
                           .workspace = workspace,
                           .W = W,
                           .X = X,
                           .type = type,
                           .k = X.size(1) / 2};
  return internal::dispatch(kName, ggml_mul_mat_vec_targets, result.device(), call, stream);
}

Status add_rmsnorm_ggml_mul_mat_vec_a8(TensorView result, TensorView residual_sum, TensorView workspace, TensorView W,
                                       TensorView X, TensorView residual, TensorView norm_weight, double eps,
                                       int64_t type, int64_t row, Stream stream) {
  constexpr char kName[] = "add_rmsnorm_ggml_mul_mat_vec_a8";
  SGL_RETURN_IF_ERROR(
      check_mul_mat(kName, result, workspace, W, X, type, row, /*x_parts=*/1, ggml_mul_mat_vec_workspace_size));
  Check check(kName);
  check.that(eps >= 0.0, "eps", eps, "at least 0")
      .that(X.size(1) <= kMostNormElements, "X.shape[-1]", X.size(1), "at most 16384");
  for (const NamedTensor& rows : {NamedTensor{"residual", residual}, NamedTensor{"residual_sum", residual_sum}}) {
    check.same_dtype(rows.name, rows.tensor, "X", X)
        .same_shape(rows.name, rows.tensor, "X", X)
        .dense_last_dim(rows.name, rows.tensor);
  }
  check.same_dtype("norm_weight", norm_weight, "X", X)
      .shape("norm_weight", norm_weight, {X.size(1)}, "X.shape[-1]")
      .contiguous("norm_weight", norm_weight)
      .same_device({{"X", X}, {"residual", residual}, {"residual_sum", residual_sum}, {"norm_weight", norm_weight}})
      .no_internal_overlap("residual_sum", residual_sum)
      .no_overlap("result", result, "residual", residual)
      .no_overlap("result", result, "norm_weight", norm_weight)
      .no_overlap("workspace", workspace, "residual", residual)
      .no_overlap("workspace", workspace, "norm_weight", norm_weight)
      .no_overlap("residual_sum", residual_sum, "result", result)
      .no_overlap("residual_sum", residual_sum, "workspace", workspace)
      .no_overlap("residual_sum", residual_sum, "W", W)
      .no_overlap("residual_sum", residual_sum, "X", X)
      .no_overlap("residual_sum", residual_sum, "residual", residual)
      .no_overlap("residual_sum", residual_sum, "norm_weight", norm_weight);
  SGL_RETURN_IF_ERROR(check.status());
  if (result.empty() && residual_sum.empty()) return OkStatus();
  const MatVecCall call = {.operator_name = kName,
                           .input = VecInput::kAddRmsnorm,
                           .result = result,
                           .workspace = workspace,
                           .W = W,
                           .X = X,
                           .type = type,
                           .k = X.size(1),
                           .residual = residual,
                           .residual_sum = residual_sum,
                           .norm_weight = norm_weight,
                           .eps = static_cast<float>(eps)};
  return internal::dispatch(kName, ggml_mul_mat_vec_targets, result.device(), call, stream);
}

Status ggml_mul_mat_a8(TensorView result, TensorView workspace, TensorView W, TensorView X, int64_t type, int64_t row,
                       Stream stream) {
  SGL_RETURN_IF_ERROR(
      check_mul_mat("ggml_mul_mat_a8", result, workspace, W, X, type, row, /*x_parts=*/1, ggml_workspace_size));
  if (result.empty()) return OkStatus();
  return SGL_DISPATCH(ggml_mul_mat_a8, result.device(), result, workspace, W, X, type, row, stream);
}

}  // namespace sgl_kernel
