#include "kernels/gemm/marlin_gemm.h"

#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/gemm/marlin_gemm_params.h"
#include "kernels/gemm/marlin_layout.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(multiply_marlin);

namespace {

constexpr char kName[] = "gptq_marlin_gemm";

// The fields of sgl_kernel.scalar_type.ScalarType in the order of its id.
constexpr int64_t scalar_type_id(int64_t exponent, int64_t mantissa, int64_t is_signed, int64_t bias,
                                 int64_t finite_only, int64_t nan_kind) {
  return exponent | mantissa << 8 | is_signed << 16 | bias << 17 | finite_only << 49 | nan_kind << 50;
}

// NaNs of integers are told as IEEE 754's (1), of e4m3 as the largest magnitudes (2), of e2m1 as none (0).
bool find_type(int64_t id, MarlinType* type) {
  constexpr struct {
    int64_t id;
    MarlinType type;
  } kTypes[] = {
      {scalar_type_id(0, 4, 0, 0, 0, 1), MarlinType::kU4},   {scalar_type_id(0, 4, 0, 8, 0, 1), MarlinType::kU4B8},
      {scalar_type_id(0, 8, 0, 0, 0, 1), MarlinType::kU8},   {scalar_type_id(0, 8, 0, 128, 0, 1), MarlinType::kU8B128},
      {scalar_type_id(4, 3, 1, 0, 1, 2), MarlinType::kE4M3}, {scalar_type_id(2, 1, 1, 0, 1, 0), MarlinType::kE2M1},
  };
  for (const auto& entry : kTypes) {
    if (entry.id != id) continue;
    *type = entry.type;
    return true;
  }
  return false;
}

// An optional tensor that may as well be empty; null then.
const TensorView* given(const std::optional<TensorView>& tensor) {
  return tensor.has_value() && !tensor->empty() ? &*tensor : nullptr;
}

void check_zeros(Check& check, const TensorView* zeros, MarlinType type, const TensorView& a, int64_t num_groups,
                 int64_t n, bool is_float) {
  const bool wants = type == MarlinType::kU4 || type == MarlinType::kU8;
  check.that((zeros != nullptr) == wants, "b_zeros_or_none", zeros == nullptr ? "missing" : "given",
             wants ? "zero points, with uint4 and uint8" : "none, with types that have no zero points");
  if (zeros == nullptr) return;
  check.that(!is_float || a.dtype() == DType::kF16, "a", "not float16", "float16, with float zero points")
      .dtype("b_zeros_or_none", *zeros, {is_float ? DType::kF16 : DType::kI32})
      .rank("b_zeros_or_none", *zeros, 2)
      .shape("b_zeros_or_none", *zeros, {num_groups, is_float ? n : n / 32 * marlin_bits(type)},
             "b_scales.shape[0], size_n (packed: size_n * bits / 32)")
      .contiguous("b_zeros_or_none", *zeros)
      .same_device({{"a", a}, {"b_zeros_or_none", *zeros}});
}

void check_index(Check& check, const char* name, const TensorView* index, const TensorView& a, int64_t k) {
  if (index == nullptr) return;
  check.dtype(name, *index, {DType::kI32})
      .rank(name, *index, 1)
      .shape(name, *index, {k}, "size_k, or none")
      .contiguous(name, *index)
      .same_device({{"a", a}, {name, *index}});
}

}  // namespace

int64_t gptq_marlin_gemm_workspace_size(int64_t m, int64_t n, int64_t k, bool gathers, Device::Kind device) {
  return device == Device::Kind::kCpu ? 0 : mixed_workspace_bytes(m, n, k, gathers);
}

Status gptq_marlin_gemm(TensorView result, TensorView workspace_bytes, TensorView a,
                        const std::optional<TensorView>& c_or_none, TensorView b_q_weight, TensorView b_scales,
                        const std::optional<TensorView>& global_scale_or_none,
                        const std::optional<TensorView>& b_zeros_or_none,
                        const std::optional<TensorView>& g_idx_or_none, const std::optional<TensorView>& perm_or_none,
                        TensorView workspace, int64_t b_q_type_id, int64_t size_m, int64_t size_n, int64_t size_k,
                        bool is_k_full, bool, bool, bool is_zp_float, Stream stream) {
  const char* const result_name = c_or_none.has_value() ? "c_or_none" : "result";
  Check check(kName);
  MarlinType type = MarlinType::kU4;
  check
      .that(find_type(b_q_type_id, &type), "b_q_type_id", b_q_type_id,
            "that of uint4, uint8, uint4b8, uint8b128, float8_e4m3fn or float4_e2m1f")
      .that(size_m >= 0 && size_m <= INT32_MAX, "size_m", size_m, "0 to 2^31 - 1")
      .that(size_n >= 0 && size_n <= INT32_MAX && size_n % kMarlinTileN == 0, "size_n", size_n, "a multiple of 64")
      .that(size_k >= 0 && size_k <= INT32_MAX && size_k % kMarlinTileK == 0, "size_k", size_k, "a multiple of 16")
      .dtype("a", a, {DType::kF16, DType::kBF16})
      .rank("a", a, 2)
      .shape("a", a, {size_m, size_k}, "size_m, size_k")
      .dense_last_dim("a", a)
      .dtype("b_q_weight", b_q_weight, {DType::kI32})
      .rank("b_q_weight", b_q_weight, 2)
      .shape("b_q_weight", b_q_weight, {size_k / kMarlinTileK, size_n / 2 * marlin_bits(type)},
             "size_k / 16, size_n * bits / 2")
      .contiguous("b_q_weight", b_q_weight)
      .rank("b_scales", b_scales, 2)
      .shape("b_scales", b_scales, {Check::kAny, size_n}, "G, size_n")
      .contiguous("b_scales", b_scales)
      .same_dtype(result_name, result, "a", a)
      .shape(result_name, result, {size_m, size_n}, "size_m, size_n")
      .contiguous(result_name, result)
      .dtype("workspace", workspace, {DType::kI32})
      .rank("workspace", workspace, 1)
      .same_device({{"a", a},
                    {result_name, result},
                    {"b_q_weight", b_q_weight},
                    {"b_scales", b_scales},
                    {"workspace", workspace},
                    {"workspace_bytes", workspace_bytes}})
      .no_overlap(result_name, result, "a", a)
      .no_overlap(result_name, result, "b_q_weight", b_q_weight)
      .no_overlap(result_name, result, "b_scales", b_scales);
  SGL_RETURN_IF_ERROR(check.status());
  if (type == MarlinType::kE2M1) {
    check.dtype("b_scales", b_scales, {DType::kF8E4M3});
  } else {
    check.same_dtype("b_scales", b_scales, "a", a);
  }
  const int64_t num_groups = b_scales.size(0);
  const TensorView* const zeros = given(b_zeros_or_none);
  const TensorView* const g_idx = given(g_idx_or_none);
  const TensorView* const perm = given(perm_or_none);
  const std::pair<const char*, const TensorView*> others[] = {{"b_zeros_or_none", zeros},
                                                              {"g_idx_or_none", g_idx},
                                                              {"perm_or_none", perm},
                                                              {"global_scale_or_none", given(global_scale_or_none)},
                                                              {"workspace_bytes", &workspace_bytes}};
  for (const auto& [name, tensor] : others) {
    if (tensor != nullptr) check.no_overlap(result_name, result, name, *tensor);
  }
  check_zeros(check, zeros, type, a, num_groups, size_n, is_zp_float);
  check_index(check, "g_idx_or_none", g_idx, a, size_k);
  check_index(check, "perm_or_none", perm, a, size_k);
  check
      .that((g_idx == nullptr) == (perm == nullptr), "perm_or_none", perm == nullptr ? "missing" : "given",
            "what g_idx_or_none is: both or neither")
      .that(perm == nullptr || zeros == nullptr, "b_zeros_or_none", "given with act-order", "none with act-order")
      .that(perm == nullptr || type != MarlinType::kE2M1, "perm_or_none", "given with float4_e2m1f",
            "none with float4_e2m1f");
  const bool wants_global = type == MarlinType::kE2M1;
  check.that(global_scale_or_none.has_value() == wants_global, "global_scale_or_none",
             wants_global ? "missing" : "given", "a number with float4_e2m1f, else none");
  if (wants_global && global_scale_or_none.has_value()) {
    check.same_dtype("global_scale_or_none", *global_scale_or_none, "a", a)
        .that(global_scale_or_none->num_elements() == 1, "global_scale_or_none.numel()",
              global_scale_or_none->num_elements(), "1")
        .same_device({{"a", a}, {"global_scale_or_none", *global_scale_or_none}});
  }
  const bool irregular = perm != nullptr && !is_k_full;
  check.that(num_groups > 0 || size_k == 0, "b_scales.shape[0]", num_groups, "at least 1");
  if (check.ok() && !irregular && size_k > 0) {
    check.that(size_k % (num_groups * kMarlinTileK) == 0, "b_scales.shape[0]", num_groups,
               "a divisor of size_k / 16: groups of equal size, a multiple of 16");
    check.that(!wants_global || (num_groups * kFp4Group == size_k && num_groups % 2 == 0), "b_scales.shape[0]",
               num_groups, "size_k / 16, even, with float4_e2m1f");
  }
  const bool on_cuda = !a.device().is_cpu();
  const int64_t bytes = gptq_marlin_gemm_workspace_size(size_m, size_n, size_k, perm != nullptr, a.device().kind);
  check.contiguous("workspace_bytes", workspace_bytes)
      .that(workspace_bytes.num_elements() * size_of(workspace_bytes.dtype()) >= bytes, "workspace_bytes",
            workspace_bytes.num_elements(), "gptq_marlin_gemm_workspace_size() bytes");
  if (on_cuda) {
    constexpr int64_t kLoad = 16;  // bytes of a thread's load
    check.aligned("a", a, kLoad)
        .aligned("b_q_weight", b_q_weight, kLoad)
        .aligned("b_scales", b_scales, kLoad)
        .aligned("workspace_bytes", workspace_bytes, kLoad)
        .aligned(result_name, result, 4);
    if (zeros != nullptr) check.aligned("b_zeros_or_none", *zeros, is_zp_float ? kLoad : 4);
  }
  SGL_RETURN_IF_ERROR(check.status());
  if (result.empty()) return OkStatus();
  if (perm != nullptr) check.in_range("perm_or_none", *perm, size_k, "size_k", stream);
  if (irregular) check.in_range("g_idx_or_none", *g_idx, num_groups, "b_scales.shape[0]", stream);
  SGL_RETURN_IF_ERROR(check.status());
  const int num_splits = on_cuda ? mixed_num_splits(size_m, size_n, size_k) : 1;
  char* const scratch = workspace_bytes.data<char>();
  const MarlinGemmParams params = {
      .result = result.data(),
      .a = a.data(),
      .a_stride = a.stride(0),
      .dtype = a.dtype(),
      .type = type,
      .weight = b_q_weight.data<uint32_t>(),
      .scales = b_scales.data(),
      .zeros = zeros == nullptr ? nullptr : zeros->data(),
      .global_scale = wants_global ? global_scale_or_none->data() : nullptr,
      .columns = perm == nullptr ? nullptr : perm->data<int32_t>(),
      .groups = irregular ? g_idx->data<int32_t>() : nullptr,
      .m = size_m,
      .n = size_n,
      .k = size_k,
      .num_groups = num_groups,
      .group_size = num_groups == 0 ? 0 : size_k / num_groups,
      .many_groups = num_groups > 1 || irregular,
      .zeros_are_float = zeros != nullptr && is_zp_float,
      .gathered = on_cuda && perm != nullptr ? scratch : nullptr,
      .partials = num_splits > 1
                      ? reinterpret_cast<float*>(scratch + mixed_gathered_bytes(size_m, size_k, perm != nullptr))
                      : nullptr,
      .num_splits = num_splits,
  };
  return internal::dispatch(kName, multiply_marlin_targets, a.device(), params, stream);
}

}  // namespace sgl_kernel
