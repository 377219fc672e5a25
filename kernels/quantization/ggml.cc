#include "kernels/quantization/ggml.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/quantization/ggml_blocks.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(ggml_dequantize);
SGL_DECLARE_TARGETS(ggml_mul_mat_vec_a8);
SGL_DECLARE_TARGETS(ggml_mul_mat_a8);

namespace {

constexpr char kKnownTypes[] = "2, 3, 6 to 8, 10 to 14, 16 to 23 or 29 (a ggml weight type)";

const char* block_multiple(const ggml::TypeInfo& info) {
  return info.block_size == 32 ? "a multiple of 32 (a block of this type)" : "a multiple of 256 (a block of this type)";
}

int64_t bytes_of_row(const ggml::TypeInfo& info, int64_t elements) {
  return elements / info.block_size * info.block_bytes;
}

Status check_mul_mat(const char* name, const TensorView& result, const TensorView& workspace, const TensorView& W,
                     const TensorView& X, int64_t type, int64_t row) {
  const ggml::TypeInfo info = ggml::type_info(type);
  Check check(name);
  check.that(info.block_size != 0, "type", type, kKnownTypes)
      .that(row >= 0, "row", row, "at least 0")
      .dtype("X", X, {DType::kF16, DType::kBF16, DType::kF32})
      .rank("X", X, 2)
      .dense_last_dim("X", X)
      .dtype("W", W, {DType::kU8});
  if (!check.ok()) return check.status();
  const int64_t num_tokens = X.size(0), k = X.size(1);
  check.that(k % info.block_size == 0, "X.shape[-1]", k, block_multiple(info));
  if (!check.ok()) return check.status();
  check.shape("W", W, {row, bytes_of_row(info, k)}, "row, bytes of X.shape[-1] elements of this type")
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
      .that(workspace.num_elements() >= ggml_workspace_size(num_tokens, k, X.device().kind), "workspace.shape[0]",
            workspace.num_elements(), "at least ggml_workspace_size()")
      .status();
}

}  // namespace

int64_t ggml_workspace_size(int64_t num_tokens, int64_t k, Device::Kind kind) {
  if (num_tokens <= 0 || k <= 0) return 0;
  const int64_t groups = k / 32;
  // The CPU: a group of 32 elements as 32 bytes, its scale and three sums of f32; tokens in tiles of 16.
  if (kind == Device::Kind::kCpu) return (num_tokens + 15) / 16 * 16 * groups * 48;
  // CUDA: a group as 32 bytes, its scale and two sums of 16 bits.
  return num_tokens * groups * 40;
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
  SGL_RETURN_IF_ERROR(check_mul_mat("ggml_mul_mat_vec_a8", result, workspace, W, X, type, row));
  if (result.empty()) return OkStatus();
  return SGL_DISPATCH(ggml_mul_mat_vec_a8, result.device(), result, workspace, W, X, type, row, stream);
}

Status ggml_mul_mat_a8(TensorView result, TensorView workspace, TensorView W, TensorView X, int64_t type, int64_t row,
                       Stream stream) {
  SGL_RETURN_IF_ERROR(check_mul_mat("ggml_mul_mat_a8", result, workspace, W, X, type, row));
  if (result.empty()) return OkStatus();
  return SGL_DISPATCH(ggml_mul_mat_a8, result.device(), result, workspace, W, X, type, row, stream);
}

}  // namespace sgl_kernel
