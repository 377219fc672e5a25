// What a server without Bazel does: includes a family's header, calls an operator, reads its Status.
#include <cmath>
#include <cstdio>

#include "kernels/elementwise/norm.h"

int main() {
  using sgl_kernel::DType;
  using sgl_kernel::TensorView;
  float input[2] = {3, 4}, weight[2] = {1, 1}, output[2] = {};
  const sgl_kernel::Status status =
      sgl_kernel::rmsnorm(TensorView(output, DType::kF32, {1, 2}), TensorView(input, DType::kF32, {1, 2}),
                          TensorView(weight, DType::kF32, {2}), /*eps=*/0, /*enable_pdl=*/false, {});
  if (!status.ok()) {
    std::printf("%s\n", status.message());
    return 1;
  }
  const float expected = 3 / std::sqrt(12.5f);
  if (std::fabs(output[0] - expected) > 1e-6f) {
    std::printf("rmsnorm: output[0] is %g, expected %g\n", output[0], expected);
    return 1;
  }
  const sgl_kernel::Status refused =
      sgl_kernel::rmsnorm(TensorView(output, DType::kF32, {1, 2}), TensorView(input, DType::kF32, {1, 2}),
                          TensorView(weight, DType::kF32, {1}), 0, false, {});
  std::printf("%s\n", refused.message());
  return refused.code() == sgl_kernel::StatusCode::kInvalidArgument ? 0 : 1;
}
