#include "kernels/gemm/marlin_repack.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/gemm/marlin_repack_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(repack_for_marlin);

namespace {

// Checks what both operators share. `perm` may be null.
Status repack(const char* name, const TensorView& result, const TensorView& weight, const TensorView* perm,
              int64_t size_k, int64_t size_n, int64_t num_bits, Stream stream) {
  Check check(name);
  check.that(num_bits == 4 || num_bits == 8, "num_bits", num_bits, "4 or 8")
      .that(size_k >= 0 && size_k <= INT32_MAX && size_k % kMarlinTileK == 0, "size_k", size_k, "a multiple of 16")
      .that(size_n >= 0 && size_n <= INT32_MAX && size_n % kMarlinTileN == 0, "size_n", size_n, "a multiple of 64")
      .dtype("b_q_weight", weight, {DType::kI32})
      .rank("b_q_weight", weight, 2);
  if (!check.ok()) return check.status();
  const int64_t per_word = 32 / num_bits;
  if (perm == nullptr) {
    check.shape("b_q_weight", weight, {size_k, size_n / per_word}, "size_k, size_n * num_bits / 32");
  } else {
    check.shape("b_q_weight", weight, {size_k / per_word, size_n}, "size_k * num_bits / 32, size_n")
        .dtype("perm", *perm, {DType::kI32})
        .rank("perm", *perm, 1)
        .contiguous("perm", *perm)
        .same_device({{"b_q_weight", weight}, {"perm", *perm}})
        .no_overlap("result", result, "perm", *perm);
    if (check.ok() && !perm->empty()) check.shape("perm", *perm, {size_k}, "size_k, or none");
  }
  check.contiguous("b_q_weight", weight)
      .dtype("result", result, {DType::kI32})
      .shape("result", result, {size_k / kMarlinTileK, size_n * kMarlinTileK / per_word},
             "size_k / 16, size_n * num_bits / 2")
      .contiguous("result", result)
      .same_device({{"b_q_weight", weight}, {"result", result}})
      .no_overlap("result", result, "b_q_weight", weight);
  SGL_RETURN_IF_ERROR(check.status());
  if (result.empty()) return OkStatus();
  if (perm != nullptr) check.in_range("perm", *perm, size_k, "size_k", stream);
  SGL_RETURN_IF_ERROR(check.status());
  const MarlinRepackParams params = {
      .operator_name = name,
      .result = result.data<uint32_t>(),
      .weight = weight.data<uint32_t>(),
      .perm = perm == nullptr || perm->empty() ? nullptr : perm->data<int32_t>(),
      .size_k = size_k,
      .size_n = size_n,
      .num_bits = static_cast<int>(num_bits),
      .from_awq = perm == nullptr,
  };
  return internal::dispatch(name, repack_for_marlin_targets, result.device(), params, stream);
}

}  // namespace

Status gptq_marlin_repack(TensorView result, TensorView b_q_weight, TensorView perm, int64_t size_k, int64_t size_n,
                          int64_t num_bits, Stream stream) {
  return repack("gptq_marlin_repack", result, b_q_weight, &perm, size_k, size_n, num_bits, stream);
}

Status awq_marlin_repack(TensorView result, TensorView b_q_weight, int64_t size_k, int64_t size_n, int64_t num_bits,
                         Stream stream) {
  return repack("awq_marlin_repack", result, b_q_weight, nullptr, size_k, size_n, num_bits, stream);
}

}  // namespace sgl_kernel
