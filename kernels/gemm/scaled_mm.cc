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
             .a_dtype = operand,
             .b_dtype = operand,
             .a = mat_a.data(),
             .a_stride = mat_a.stride(0),
             .b = mat_b.data(),
             .b_stride = mat_b.stride(1),
             .output = output.data(),
             .output_stride = output.stride(0),
             .output_dtype = output.dtype()};
  return check.status();
}

Status run(ScaledMmParams params, Device device, Stream stream) {
  if (params.m == 0 || params.n == 0) return OkStatus();
  // A tensor of one row may give it any stride, such as 1, which the kernels for aligned rows would refuse. They get an
  // aligned one even if K or N is not.
  const auto aligned = [](int64_t row) { return (row + 15) / 16 * 16; };
  if (params.m == 1) {
    params.a_stride = aligned(params.k);
    params.output_stride = aligned(params.n);
  }
  if (params.n == 1) params.b_stride = aligned(params.k);
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
  // A product is at most (-128)^2 = 2^14, and the largest int32 is 2^31 - 1: one product less than 2^17 of them fit.
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

Status bmm_fp8(TensorView A, TensorView B, TensorView D, TensorView A_scale, TensorView B_scale,
               TensorView workspace_buffer, int64_t cublas_handle, Stream stream) {
  static_cast<void>(workspace_buffer), static_cast<void>(cublas_handle);
  constexpr char kName[] = "bmm_fp8";
  Check check(kName);
  check.dtype("A", A, {DType::kF8E4M3, DType::kF8E5M2})
      .rank("A", A, 3)
      .dense_last_dim("A", A)
      .dtype("B", B, {DType::kF8E4M3, DType::kF8E5M2})
      .rank("B", B, 3);
  if (!check.ok()) return check.status();
  const int64_t batches = A.size(0), m = A.size(1), k = A.size(2), n = B.size(2);
  SGL_RETURN_IF_ERROR(
      check.shape("B", B, {batches, k, Check::kAny}, "A.shape[0], A.shape[2], N")
          .that(k <= 1 || B.stride(1) == 1, "B.stride(1)", B.stride(1), "1 (column-major)")
          .dtype("D", D, {DType::kF16, DType::kBF16})
          .shape("D", D, {batches, m, n}, "A.shape[0], A.shape[1], B.shape[2]")
          .dense_last_dim("D", D)
          .no_internal_overlap("D", D)
          .dtype("A_scale", A_scale, {DType::kF32})
          .that(A_scale.num_elements() == 1, "A_scale.numel()", A_scale.num_elements(), "1")
          .dtype("B_scale", B_scale, {DType::kF32})
          .that(B_scale.num_elements() == 1, "B_scale.numel()", B_scale.num_elements(), "1")
          .same_device({{"A", A}, {"B", B}, {"D", D}, {"A_scale", A_scale}, {"B_scale", B_scale}})
          .no_overlap("D", D, "A", A)
          .no_overlap("D", D, "B", B)
          .no_overlap("D", D, "A_scale", A_scale)
          .no_overlap("D", D, "B_scale", B_scale)
          .that(m <= INT32_MAX && n <= INT32_MAX && k <= INT32_MAX, "A or B", "larger", "at most 2^31 - 1 a side")
          .status());
  if (batches == 0) return OkStatus();
  const ScaledMmParams params = {.operator_name = kName,
                                 .m = m,
                                 .n = n,
                                 .k = k,
                                 .a_dtype = A.dtype(),
                                 .b_dtype = B.dtype(),
                                 .a = A.data(),
                                 .a_stride = A.stride(1),
                                 .b = B.data(),
                                 .b_stride = B.stride(2),
                                 .output = D.data(),
                                 .output_stride = D.stride(1),
                                 .output_dtype = D.dtype(),
                                 .batches = batches,
                                 .a_batch_stride = A.stride(0),
                                 .b_batch_stride = B.stride(0),
                                 .output_batch_stride = D.stride(0),
                                 .row_scales = {A_scale.data<float>(), 0},
                                 .column_scales = {B_scale.data<float>(), 0}};
  return run(params, D.device(), stream);
}

}  // namespace sgl_kernel
