#include "kernels/gemm/gptq_gemm.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/gemm/gptq_gemm_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(shuffle_gptq);
SGL_DECLARE_TARGETS(multiply_gptq);

namespace {

constexpr int64_t kPackedRows = 32;  // K and N are multiples: whole words for every number of bits

// The weight's K, or 0 after a failed check.
int64_t check_weight(Check& check, const char* name, const TensorView& weight, int64_t bit) {
  check.that(bit == 2 || bit == 3 || bit == 4 || bit == 8, "bit", bit, "2, 3, 4 or 8")
      .dtype(name, weight, {DType::kI32})
      .rank(name, weight, 2)
      .contiguous(name, weight);
  if (!check.ok()) return 0;
  const std::string rows = std::string(name) + ".shape[0]";
  check.that(weight.size(0) % bit == 0, rows.c_str(), weight.size(0), "a multiple of bit (32 rows in `bit` words)")
      .that(weight.size(0) <= INT32_MAX / kPackedRows && weight.size(1) <= INT32_MAX, name, "too large",
            "at most 2^31 - 1 rows and columns");
  return check.ok() ? weight.size(0) / bit * kPackedRows : 0;
}

}  // namespace

Status gptq_shuffle(TensorView workspace, TensorView q_weight, TensorView q_perm, int64_t bit, Stream stream) {
  Check check("gptq_shuffle");
  const int64_t k = check_weight(check, "q_weight", q_weight, bit);
  check.dtype("q_perm", q_perm, {DType::kI32})
      .rank("q_perm", q_perm, 1)
      .contiguous("q_perm", q_perm)
      .same_device({{"q_weight", q_weight}, {"q_perm", q_perm}, {"workspace", workspace}})
      .no_overlap("q_weight", q_weight, "q_perm", q_perm)
      .dtype("workspace", workspace, {DType::kI32})
      .contiguous("workspace", workspace)
      .no_overlap("q_weight", q_weight, "workspace", workspace);
  SGL_RETURN_IF_ERROR(check.status());
  const bool permutes = !q_perm.empty();
  if (permutes) check.shape("q_perm", q_perm, {k}, "q_weight.shape[0] * 32 / bit, or none");
  check.that(!permutes || workspace.num_elements() >= q_weight.num_elements(), "workspace.numel()",
             workspace.num_elements(), "q_weight.numel()");
  SGL_RETURN_IF_ERROR(check.status());
  if (q_weight.empty()) return OkStatus();
  SGL_RETURN_IF_ERROR(check.in_range("q_perm", q_perm, k, "q_weight.shape[0] * 32 / bit", stream).status());
  const GptqShuffleParams params = {
      .weight = q_weight.data<uint32_t>(),
      .workspace = permutes ? workspace.data<uint32_t>() : nullptr,
      .perm = permutes ? q_perm.data<int32_t>() : nullptr,
      .k = k,
      .n = q_weight.size(1),
      .num_bits = static_cast<int>(bit),
  };
  return internal::dispatch("gptq_shuffle", shuffle_gptq_targets, q_weight.device(), params, stream);
}

int64_t gptq_gemm_workspace_size(int64_t m, int64_t n, int64_t k, bool gathers, Device::Kind device) {
  return device == Device::Kind::kCpu ? 0 : mixed_workspace_bytes(m, n, k, gathers);
}

Status gptq_gemm(TensorView result, TensorView workspace, TensorView a, TensorView b_q_weight, TensorView b_gptq_qzeros,
                 TensorView b_gptq_scales, TensorView b_g_idx, bool use_shuffle, int64_t bit, Stream stream) {
  Check check("gptq_gemm");
  const int64_t k = check_weight(check, "b_q_weight", b_q_weight, bit);
  check.dtype("a", a, {DType::kF16})
      .rank("a", a, 2)
      .contiguous("a", a)
      .dtype("b_gptq_qzeros", b_gptq_qzeros, {DType::kI32})
      .rank("b_gptq_qzeros", b_gptq_qzeros, 2)
      .contiguous("b_gptq_qzeros", b_gptq_qzeros)
      .dtype("b_gptq_scales", b_gptq_scales, {DType::kF16})
      .rank("b_gptq_scales", b_gptq_scales, 2)
      .contiguous("b_gptq_scales", b_gptq_scales)
      .dtype("b_g_idx", b_g_idx, {DType::kI32})
      .rank("b_g_idx", b_g_idx, 1)
      .contiguous("b_g_idx", b_g_idx)
      .dtype("result", result, {DType::kF16})
      .contiguous("result", result)
      .same_device({{"a", a},
                    {"b_q_weight", b_q_weight},
                    {"b_gptq_qzeros", b_gptq_qzeros},
                    {"b_gptq_scales", b_gptq_scales},
                    {"b_g_idx", b_g_idx},
                    {"result", result},
                    {"workspace", workspace}});
  SGL_RETURN_IF_ERROR(check.status());
  const int64_t m = a.size(0), n = b_q_weight.size(1), num_groups = b_gptq_scales.size(0);
  const bool indexed = !b_g_idx.empty();
  const bool on_cuda = !a.device().is_cpu();
  const int64_t workspace_bytes = gptq_gemm_workspace_size(m, n, k, use_shuffle && indexed, a.device().kind);
  check.shape("a", a, {Check::kAny, k}, "M, b_q_weight.shape[0] * 32 / bit")
      .that(m <= INT32_MAX, "a.shape[0]", m, "at most 2^31 - 1")
      .that(n % kPackedRows == 0, "b_q_weight.shape[1]", n, "a multiple of 32")
      .shape("b_gptq_scales", b_gptq_scales, {Check::kAny, n}, "G, b_q_weight.shape[1]")
      .that(num_groups > 0 || k == 0, "b_gptq_scales.shape[0]", num_groups, "at least 1")
      .shape("b_gptq_qzeros", b_gptq_qzeros, {num_groups, n / 32 * bit},
             "b_gptq_scales.shape[0], b_q_weight.shape[1] * bit / 32")
      .shape("result", result, {m, n}, "a.shape[0], b_q_weight.shape[1]");
  if (check.ok() && indexed) check.shape("b_g_idx", b_g_idx, {k}, "a.shape[1], or none");
  check
      .that(num_groups == 0 || (indexed && !use_shuffle) || k % num_groups == 0, "b_gptq_scales.shape[0]", num_groups,
            "a divisor of K, as there are groups of equal size")
      .that(workspace.num_elements() * size_of(workspace.dtype()) >= workspace_bytes, "workspace",
            workspace.num_elements(), "gptq_gemm_workspace_size() bytes")
      .contiguous("workspace", workspace)
      .no_overlap("result", result, "a", a)
      .no_overlap("result", result, "b_q_weight", b_q_weight)
      .no_overlap("result", result, "b_gptq_qzeros", b_gptq_qzeros)
      .no_overlap("result", result, "b_gptq_scales", b_gptq_scales)
      .no_overlap("result", result, "b_g_idx", b_g_idx)
      .no_overlap("result", result, "workspace", workspace);
  if (on_cuda) {
    constexpr int64_t kLoad = 16;  // bytes of a thread's load
    check.aligned("a", a, kLoad).aligned("b_q_weight", b_q_weight, kLoad).aligned("workspace", workspace, kLoad);
    check.aligned("result", result, kLoad).aligned("b_gptq_scales", b_gptq_scales, kLoad);
  }
  SGL_RETURN_IF_ERROR(check.status());
  if (result.empty()) return OkStatus();
  if (use_shuffle) {
    check.in_range("b_g_idx", b_g_idx, k, "a.shape[1]", stream);
  } else {
    check.in_range("b_g_idx", b_g_idx, num_groups, "b_gptq_scales.shape[0]", stream);
  }
  SGL_RETURN_IF_ERROR(check.status());
  const bool gathers = use_shuffle && indexed;
  char* const scratch = workspace.data<char>();
  const int num_splits = on_cuda ? mixed_num_splits(m, n, k) : 1;
  const GptqGemmParams params = {
      .result = result.data(),
      .a = a.data(),
      .weight = b_q_weight.data<uint32_t>(),
      .zeros = b_gptq_qzeros.data<uint32_t>(),
      .scales = b_gptq_scales.data(),
      .columns = gathers ? b_g_idx.data<int32_t>() : nullptr,
      .groups = indexed && !use_shuffle ? b_g_idx.data<int32_t>() : nullptr,
      .m = m,
      .n = n,
      .k = k,
      .num_groups = num_groups,
      .num_bits = static_cast<int>(bit),
      .shuffled = use_shuffle,
      .gathered = on_cuda && gathers ? scratch : nullptr,
      .partials = num_splits > 1 ? reinterpret_cast<float*>(scratch + mixed_gathered_bytes(m, k, gathers)) : nullptr,
      .num_splits = num_splits,
  };
  return internal::dispatch("gptq_gemm", multiply_gptq_targets, a.device(), params, stream);
}

}  // namespace sgl_kernel
