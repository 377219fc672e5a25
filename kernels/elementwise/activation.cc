#include "kernels/elementwise/activation.h"

#include "kernels/base/check.h"
#include "kernels/base/dispatch.h"
#include "kernels/elementwise/activation_params.h"

namespace sgl_kernel {

SGL_DECLARE_TARGETS(activation_and_mul);

namespace {

Status check_and_run(const char* operator_name, Activation activation, const TensorView& out, const TensorView& input,
                     Stream stream) {
  Check check(operator_name);
  check.rank("input", input, 1, TensorView::kMaxRank).rank("out", out, 1, TensorView::kMaxRank);
  SGL_RETURN_IF_ERROR(check.status());
  check.dtype("input", input, {DType::kF16, DType::kBF16, DType::kF32})
      .same_dtype("out", out, "input", input)
      .that(input.size(-1) % 2 == 0, "input.shape[-1]", input.size(-1), "an even extent: gate and up");
  bool same_rows = out.rank() == input.rank() && out.size(-1) == input.size(-1) / 2;
  for (int dim = 0; same_rows && dim + 1 < input.rank(); ++dim) same_rows = out.size(dim) == input.size(dim);
  if (check.ok() && !same_rows) {
    const std::string is = "has shape " + shape_string(out);
    const std::string expected = "that of input, " + shape_string(input) + ", with half its last extent";
    check.that(false, "out", is.c_str(), expected.c_str());
  }
  int64_t out_stride = 0, input_stride = 0;
  check.same_device({{"input", input}, {"out", out}})
      .dense_last_dim("input", input)
      .dense_last_dim("out", out)
      .uniform_rows("input", input, &input_stride)
      .uniform_rows("out", out, &out_stride)
      .no_internal_overlap("out", out)
      .no_overlap("out", out, "input", input);
  SGL_RETURN_IF_ERROR(check.status());
  if (out.empty()) return OkStatus();

  const int64_t dim = out.size(-1);
  const ActivationParams params = {operator_name,
                                   activation,
                                   out.dtype(),
                                   out.data(),
                                   input.data(),
                                   /*num_rows=*/out.num_elements() / dim,
                                   dim,
                                   out_stride,
                                   input_stride};
  return internal::dispatch(operator_name, activation_and_mul_targets, out.device(), params, stream);
}

}  // namespace

Status silu_and_mul(TensorView out, TensorView input, Stream stream) {
  return check_and_run("silu_and_mul", Activation::kSilu, out, input, stream);
}

Status gelu_tanh_and_mul(TensorView out, TensorView input, Stream stream) {
  return check_and_run("gelu_tanh_and_mul", Activation::kGeluTanh, out, input, stream);
}

Status gelu_and_mul(TensorView out, TensorView input, Stream stream) {
  return check_and_run("gelu_and_mul", Activation::kGelu, out, input, stream);
}

}  // namespace sgl_kernel
