// What the CPU multiplies where the input is not X as it is: made in X's dtype behind the workspace of the product.
#include <cmath>

#include "kernels/base/cpu_dtype_switch.h"
#include "kernels/base/parallel.h"
#include "kernels/quantization/ggml.h"
#include "kernels/quantization/ggml_params.h"

namespace sgl_kernel::cpu {

decltype(::sgl_kernel::ggml_mul_mat_a8) ggml_mul_mat_a8;

namespace {

template <class T>
void silu_and_mul_row(T* y, const T* gate_and_up, int64_t k) {
  for (int64_t j = 0; j < k; ++j) {
    const float g = static_cast<float>(gate_and_up[j]);
    y[j] = static_cast<T>(g / (1.0f + std::exp(-g)) * static_cast<float>(gate_and_up[k + j]));
  }
}

template <class T>
void add_rmsnorm_row(T* y, T* sum, const T* x, const T* residual, const T* weight, float eps, int64_t k) {
  double squares = 0;
  for (int64_t j = 0; j < k; ++j) {
    sum[j] = static_cast<T>(static_cast<float>(x[j]) + static_cast<float>(residual[j]));
    squares += double{static_cast<float>(sum[j])} * double{static_cast<float>(sum[j])};
  }
  const float scale = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(k) + double{eps}));
  for (int64_t j = 0; j < k; ++j) {
    y[j] = static_cast<T>(static_cast<float>(sum[j]) * scale * static_cast<float>(weight[j]));
  }
}

template <class T>
void make_rows(T* y, const MatVecCall& call, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const T* x = call.X.data<const T>() + t * call.X.stride(0);
    if (call.input == VecInput::kSiluAndMul) {
      silu_and_mul_row(y + t * call.k, x, call.k);
    } else {
      add_rmsnorm_row(y + t * call.k, call.residual_sum.data<T>() + t * call.residual_sum.stride(0), x,
                      call.residual.data<const T>() + t * call.residual.stride(0), call.norm_weight.data<const T>(),
                      call.eps, call.k);
    }
  }
}

}  // namespace

Status ggml_mul_mat_vec(const MatVecCall& call, Stream stream) {
  TensorView X = call.X;
  if (call.input != VecInput::kAsItIs) {
    const int64_t num_tokens = X.size(0);
    X = TensorView(call.workspace.data<char>() + ggml_workspace_size(num_tokens, call.k, Device::Kind::kCpu), X.dtype(),
                   {num_tokens, call.k});
    SGL_CPU_SWITCH_FLOAT(X.dtype(), T, parallel_for(num_tokens, /*grain=*/1, [&](int64_t begin, int64_t end) {
                           make_rows(X.data<T>(), call, begin, end);
                         }));
  }
  return cpu::ggml_mul_mat_a8(call.result, call.workspace, call.W, X, call.type, call.result.size(1), stream);
}

}  // namespace sgl_kernel::cpu
