#include "kernels/quantization/awq_dequantize.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/quantization/awq_dequantize_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(decode_awq);

namespace {
constexpr int64_t kAlignment = 16;  // bytes that a thread moves at once
}

Status awq_dequantize(TensorView result, TensorView qweight, TensorView scales, TensorView qzeros, Stream stream) {
  Check check("awq_dequantize");
  check.rank("qweight", qweight, 2)
      .rank("scales", scales, 2)
      .rank("qzeros", qzeros, 2)
      .rank("result", result, 2)
      .dtype("qweight", qweight, {DType::kI32})
      .dtype("scales", scales, {DType::kF16, DType::kBF16})
      .dtype("qzeros", qzeros, {DType::kI32})
      .same_dtype("result", result, "scales", scales)
      .same_device({{"qweight", qweight}, {"scales", scales}, {"qzeros", qzeros}, {"result", result}});
  SGL_RETURN_IF_ERROR(check.status());
  const int64_t rows = qweight.size(0), words = qweight.size(1), groups = scales.size(0);
  check.shape("scales", scales, {Check::kAny, words * kAwqPerWord}, "qweight.shape[1] * 8")
      .shape("qzeros", qzeros, {groups, words}, "scales.shape[0], qweight.shape[1]")
      .shape("result", result, {rows, words * kAwqPerWord}, "qweight.shape[0], qweight.shape[1] * 8")
      .that(rows <= INT32_MAX, "qweight.shape[0]", rows, "less than 2^31")
      .that(rows == 0 || (groups > 0 && rows % groups == 0), "scales.shape[0]", groups, "a divisor of qweight.shape[0]")
      .contiguous("qweight", qweight)
      .contiguous("scales", scales)
      .contiguous("qzeros", qzeros)
      .contiguous("result", result)
      .aligned("scales", scales, kAlignment)
      .aligned("result", result, kAlignment)
      .no_overlap("result", result, "qweight", qweight)
      .no_overlap("result", result, "scales", scales)
      .no_overlap("result", result, "qzeros", qzeros);
  SGL_RETURN_IF_ERROR(check.status());
  if (result.empty()) return OkStatus();
  AwqParams params = {};
  params.dtype = scales.dtype();
  params.result = result.data();
  params.qweight = qweight.data<uint32_t>();
  params.scales = scales.data();
  params.qzeros = qzeros.data<uint32_t>();
  params.num_rows = rows;
  params.words_per_row = words;
  params.group_size = rows / groups;
  params.num_groups = groups;
  return internal::dispatch("awq_dequantize", decode_awq_targets, result.device(), params, stream);
}

}  // namespace sgl_kernel
