#include "kernels/gemm/skinny_mm.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/gemm/skinny_mm_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(skinny_mm);

namespace {

// mat_b is [N, K], or with b_is_transposed [K, N]. The caller has checked the output's dtype.
Status run(const char* name, const TensorView& output, const TensorView& mat_a, const TensorView& mat_b,
           bool b_is_transposed, Stream stream) {
  Check check(name);
  check.dtype("mat_a", mat_a, {DType::kBF16})
      .rank("mat_a", mat_a, 2)
      .dense_last_dim("mat_a", mat_a)
      .dtype("mat_b", mat_b, {DType::kBF16})
      .rank("mat_b", mat_b, 2);
  if (!check.ok()) return check.status();
  const int64_t m = mat_a.size(0), k = mat_a.size(1);
  const int rows_of_b = b_is_transposed ? 1 : 0;
  const int64_t n = mat_b.size(rows_of_b);
  if (b_is_transposed) {
    check.shape("mat_b", mat_b, {k, Check::kAny}, "mat_a.shape[1], N")
        .that(k <= 1 || mat_b.stride(0) == 1, "mat_b.stride(0)", mat_b.stride(0), "1 (column-major)");
  } else {
    check.shape("mat_b", mat_b, {Check::kAny, k}, "N, mat_a.shape[1]").dense_last_dim("mat_b", mat_b);
  }
  SGL_RETURN_IF_ERROR(check.shape("output", output, {m, n}, "mat_a.shape[0], N of mat_b")
                          .dense_last_dim("output", output)
                          .no_internal_overlap("output", output)
                          .same_device({{"mat_a", mat_a}, {"mat_b", mat_b}, {"output", output}})
                          .no_overlap("output", output, "mat_a", mat_a)
                          .no_overlap("output", output, "mat_b", mat_b)
                          .status());
  if (m == 0 || n == 0) return OkStatus();
  const SkinnyMmParams params = {.operator_name = name,
                                 .m = m,
                                 .n = n,
                                 .k = k,
                                 .a = mat_a.data(),
                                 .a_stride = mat_a.stride(0),
                                 .b = mat_b.data(),
                                 .b_stride = mat_b.stride(rows_of_b),
                                 .output = output.data(),
                                 .output_stride = output.stride(0),
                                 .output_dtype = output.dtype()};
  return SGL_DISPATCH(skinny_mm, output.device(), params, stream);
}

}  // namespace

Status dsv3_fused_a_gemm(TensorView output, TensorView mat_a, TensorView mat_b, Stream stream) {
  constexpr char kName[] = "dsv3_fused_a_gemm";
  SGL_RETURN_IF_ERROR(Check(kName).dtype("output", output, {DType::kBF16}).status());
  return run(kName, output, mat_a, mat_b, /*b_is_transposed=*/true, stream);
}

Status dsv3_router_gemm(TensorView output, TensorView mat_a, TensorView mat_b, Stream stream) {
  constexpr char kName[] = "dsv3_router_gemm";
  SGL_RETURN_IF_ERROR(Check(kName).dtype("output", output, {DType::kBF16, DType::kF32}).status());
  return run(kName, output, mat_a, mat_b, /*b_is_transposed=*/false, stream);
}

}  // namespace sgl_kernel
