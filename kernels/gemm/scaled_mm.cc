#include "kernels/gemm/scaled_mm.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/gemm/scaled_mm_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(scaled_mm);

namespace {

// Checks what the three operators share, and describes it.
Status describe(const char* name, DType operand, const TensorView& output, const TensorView& mat_a,
                const TensorView& mat_b, const TensorView& scales_a, const TensorView& scales_b,
                ScaledMmParams* params) {
  Check check(name);
  check.dtype("mat_a", mat_a, {operand})
      .rank("mat_a", mat_a, 2)
      .dense_last_dim("mat_a", mat_a)
      .dtype("mat_b", mat_b, {operand})
      .rank("mat_b", mat_b, 2);
  if (!check.ok()) return check.status();
  const int64_t m = mat_a.size(0), k = mat_a.size(1), n = mat_b.size(1);
  check.shape("mat_b", mat_b, {k, Check::kAny}, "mat_a.shape[1], N")
      .that(k <= 1 || mat_b.stride(0) == 1, "mat_b.stride(0)", mat_b.stride(0), "1 (column-major)")
      .dtype("output", output, {DType::kF16, DType::kBF16})
      .shape("output", output, {m, n}, "mat_a.shape[0], mat_b.shape[1]")
      .dense_last_dim("output", output)
      .no_internal_overlap("output", output)
      .dtype("scales_a", scales_a, {DType::kF32})
      .dtype("scales_b", scales_b, {DType::kF32})
      .same_device(
          {{"mat_a", mat_a}, {"mat_b", mat_b}, {"output", output}, {"scales_a", scales_a}, {"scales_b", scales_b}})
      .no_overlap("output", output, "mat_a", mat_a)
      .no_overlap("output", output, "mat_b", mat_b)
      .no_overlap("output", output, "scales_a", scales_a)
      .no_overlap("output", output, "scales_b", scales_b)
      .that(m <= INT32_MAX && n <= INT32_MAX && k <= INT32_MAX, "mat_a or mat_b", "larger", "at most 2^31 - 1 a side");
  *params = {.operator_name = name,
             .m = m,
             .n = n,
             .k = k,
             .operand = operand,
             .a = mat_a.data(),
             .a_stride = mat_a.stride(0),
             .b = mat_b.data(),
             .b_stride = mat_b.stride(1),
             .output = output.data(),
             .output_stride = output.stride(0),
             .output_dtype = output.dtype()};
  return check.status();
}

Status run(const ScaledMmParams& params, Device device, Stream stream) {
  if (params.m == 0 || params.n == 0) return OkStatus();
  return SGL_DISPATCH(scaled_mm, device, params, stream);
}

// Scales of rows and of columns.
Status scale_vectors(const char* name, DType operand, const TensorView& output, const TensorView& mat_a,
                     const TensorView& mat_b, const TensorView& scales_a, const TensorView& scales_b,
                     const std::optional<TensorView>& bias, Stream stream) {
  ScaledMmParams params;
  SGL_RETURN_IF_ERROR(describe(name, operand, output, mat_a, mat_b, scales_a, scales_b, &params));
  const int64_t scales_of_a = scales_a.num_elements(), scales_of_b = scales_b.num_elements();
  Check check(name);
  check.that(scales_of_a == params.m || scales_of_a == 1, "scales_a.numel()", scales_of_a, "mat_a.shape[0], or 1")
      .that(scales_of_b == params.n || scales_of_b == 1, "scales_b.numel()", scales_of_b, "mat_b.shape[1], or 1")
      .contiguous("scales_a", scales_a)
      .contiguous("scales_b", scales_b);
  if (bias.has_value()) {
    check.same_dtype("bias", *bias, "output", output)
        .shape("bias", *bias, {params.n}, "mat_b.shape[1]")
        .contiguous("bias", *bias)
        .same_device({{"mat_a", mat_a}, {"bias", *bias}})
        .no_overlap("output", output, "bias", *bias);
  }
  // 2^17 products of 2^14 are 2^31, of which the largest, (-128)^2, cannot be all.
  constexpr int64_t kMostK = 131071;
  check.that(operand != DType::kI8 || params.k <= kMostK, "mat_a.shape[1]", params.k,
             "at most 131071 (the sum is an int32)");
  if (!check.ok()) return check.status();
  params.row_scales = {scales_a.data<float>(), scales_of_a == 1 ? 0 : 1};
  params.column_scales = {scales_b.data<float>(), scales_of_b == 1 ? 0 : 1};
  params.bias = bias.has_value() ? bias->data() : nullptr;
  return run(params, output.device(), stream);
}

}  // namespace

Status fp8_scaled_mm(TensorView output, TensorView mat_a, TensorView mat_b, TensorView scales_a, TensorView scales_b,
                     const std::optional<TensorView>& bias, Stream stream) {
  return scale_vectors("fp8_scaled_mm", DType::kF8E4M3, output, mat_a, mat_b, scales_a, scales_b, bias, stream);
}

Status int8_scaled_mm(TensorView output, TensorView mat_a, TensorView mat_b, TensorView scales_a, TensorView scales_b,
                      const std::optional<TensorView>& bias, Stream stream) {
  return scale_vectors("int8_scaled_mm", DType::kI8, output, mat_a, mat_b, scales_a, scales_b, bias, stream);
}

Status fp8_blockwise_scaled_mm(TensorView output, TensorView mat_a, TensorView mat_b, TensorView scales_a,
                               TensorView scales_b, Stream stream) {
  constexpr char kName[] = "fp8_blockwise_scaled_mm";
  ScaledMmParams params;
  SGL_RETURN_IF_ERROR(describe(kName, DType::kF8E4M3, output, mat_a, mat_b, scales_a, scales_b, &params));
  const int64_t k_blocks = (params.k + kScaleBlock - 1) / kScaleBlock;
  const int64_t n_blocks = (params.n + kScaleBlock - 1) / kScaleBlock;
  SGL_RETURN_IF_ERROR(
      Check(kName)
          .shape("scales_a", scales_a, {params.m, k_blocks}, "mat_a.shape[0], ceil(mat_a.shape[1] / 128)")
          .shape("scales_b", scales_b, {k_blocks, n_blocks}, "ceil(mat_b.shape[0] / 128), ceil(mat_b.shape[1] / 128)")
          .status());
  params.blockwise = true;
  params.a_block_scales = {scales_a.data<float>(), scales_a.stride(0), scales_a.stride(1)};
  params.b_block_scales = {scales_b.data<float>(), scales_b.stride(0), scales_b.stride(1)};
  return run(params, output.device(), stream);
}

}  // namespace sgl_kernel
