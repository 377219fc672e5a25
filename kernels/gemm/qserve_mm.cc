#include "kernels/gemm/qserve_mm.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/gemm/qserve_mm_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(qserve_mm);

namespace {

constexpr int64_t kAlignment = 16;  // in bytes, as the copies to shared memory want it

// An input that is f16, contiguous and has `count` elements.
void check_vector(Check& check, const char* name, const TensorView& tensor, int64_t count, const char* expected,
                  const TensorView& output) {
  check.dtype(name, tensor, {DType::kF16})
      .that(tensor.num_elements() == count, name, "of another size", expected)
      .contiguous(name, tensor)
      .same_device({{"_out_feats", output}, {name, tensor}})
      .no_overlap("_out_feats", output, name, tensor);
}

// Checks what the two operators share, and describes it.
Status describe(const char* name, const TensorView& in_feats, const TensorView& kernel, const TensorView& wscales,
                const TensorView& ascales, const TensorView& out_feats, int multiple_of_k, QserveMmParams* params) {
  Check check(name);
  check.dtype("_in_feats", in_feats, {DType::kI8})
      .rank("_in_feats", in_feats, 2)
      .dense_last_dim("_in_feats", in_feats)
      .dtype("_kernel", kernel, {DType::kI8})
      .rank("_kernel", kernel, 2);
  if (!check.ok()) return check.status();
  const int64_t m = in_feats.size(0), k = in_feats.size(1), n = kernel.size(0);
  constexpr int64_t kMostK = 131071;  // 2^17 products of 2^14 are 2^31
  check
      .that(k % multiple_of_k == 0, "_in_feats.shape[1]", k,
            multiple_of_k == kQserveGroup ? "a multiple of 128" : "a multiple of 32")
      .that(k <= kMostK, "_in_feats.shape[1]", k, "at most 131071 (the sum is an int32)")
      .shape("_kernel", kernel, {n, k / 2}, "N, _in_feats.shape[1] / 2")
      .that(n % kQserveTile == 0, "_kernel.shape[0]", n, "a multiple of 32")
      .contiguous("_kernel", kernel)
      .aligned("_kernel", kernel, kAlignment)
      .dtype("_out_feats", out_feats, {DType::kF16})
      .shape("_out_feats", out_feats, {m, n}, "_in_feats.shape[0], _kernel.shape[0]")
      .dense_last_dim("_out_feats", out_feats)
      .no_internal_overlap("_out_feats", out_feats)
      .same_device({{"_in_feats", in_feats}, {"_kernel", kernel}, {"_out_feats", out_feats}})
      .no_overlap("_out_feats", out_feats, "_in_feats", in_feats)
      .no_overlap("_out_feats", out_feats, "_kernel", kernel);
  check_vector(check, "_wscales", wscales, n, "_kernel.shape[0] numbers", out_feats);
  check_vector(check, "_ascales", ascales, m, "_in_feats.shape[0] numbers", out_feats);
  *params = {.operator_name = name,
             .m = m,
             .n = n,
             .k = k,
             .input = in_feats.data<int8_t>(),
             .input_stride = in_feats.stride(0),
             .weights = kernel.data<uint8_t>(),
             .row_scales = ascales.data(),
             .column_scales = wscales.data(),
             .grouped = multiple_of_k == kQserveGroup,
             .group_scales = nullptr,
             .group_zeros = nullptr,
             .row_sums = nullptr,
             .column_zeros = nullptr,
             .output = out_feats.data(),
             .output_stride = out_feats.stride(0)};
  return check.status();
}

Status run(const QserveMmParams& params, Device device, Stream stream) {
  if (params.m == 0 || params.n == 0) return OkStatus();
  return SGL_DISPATCH(qserve_mm, device, params, stream);
}

}  // namespace

Status qserve_w4a8_per_chn_gemm(TensorView _in_feats, TensorView _kernel, TensorView _wscales, TensorView _ascales,
                                TensorView _w_szs, TensorView _a_ssums, TensorView _out_feats, Stream stream) {
  constexpr char kName[] = "qserve_w4a8_per_chn_gemm";
  QserveMmParams params;
  SGL_RETURN_IF_ERROR(describe(kName, _in_feats, _kernel, _wscales, _ascales, _out_feats, kQserveTile, &params));
  Check check(kName);
  check_vector(check, "_w_szs", _w_szs, params.n, "_kernel.shape[0] numbers", _out_feats);
  check_vector(check, "_a_ssums", _a_ssums, params.m, "_in_feats.shape[0] numbers", _out_feats);
  SGL_RETURN_IF_ERROR(check.status());
  params.row_sums = _a_ssums.data();
  params.column_zeros = _w_szs.data();
  return run(params, _out_feats.device(), stream);
}

Status qserve_w4a8_per_group_gemm(TensorView _in_feats, TensorView _kernel, TensorView _zeros, TensorView _scales_i8,
                                  TensorView _wscales, TensorView _ascales, TensorView _out_feats, Stream stream) {
  constexpr char kName[] = "qserve_w4a8_per_group_gemm";
  QserveMmParams params;
  SGL_RETURN_IF_ERROR(describe(kName, _in_feats, _kernel, _wscales, _ascales, _out_feats, kQserveGroup, &params));
  Check check(kName);
  for (const auto& [name, tensor] : {NamedTensor{"_zeros", _zeros}, NamedTensor{"_scales_i8", _scales_i8}}) {
    check.dtype(name, tensor, {DType::kI8})
        .shape(name, tensor, {params.k / kQserveGroup, params.n}, "_in_feats.shape[1] / 128, _kernel.shape[0]")
        .contiguous(name, tensor)
        .aligned(name, tensor, kAlignment)
        .same_device({{"_out_feats", _out_feats}, {name, tensor}})
        .no_overlap("_out_feats", _out_feats, name, tensor);
  }
  SGL_RETURN_IF_ERROR(check.status());
  params.group_scales = _scales_i8.data<uint8_t>();
  params.group_zeros = _zeros.data<uint8_t>();
  return run(params, _out_feats.device(), stream);
}

}  // namespace sgl_kernel
