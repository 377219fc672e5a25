#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention/merge_state_params.h"
#include "kernels/base/cpu_avx2.h"
#include "kernels/base/cpu_dtype_switch.h"
#include "kernels/base/parallel.h"

namespace sgl_kernel::cpu {
namespace {

constexpr float kEmpty = -std::numeric_limits<float>::infinity();

template <class T>
T* at(const PerHead& tensor, int64_t token, int64_t head) {
  return static_cast<T*>(tensor.data) + token * tensor.stride + head * tensor.head_stride;
}

template <class T>
void weigh_plain(const T* a, float weight_a, const T* b, float weight_b, T* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<T>(weight_a * static_cast<float>(a[i]) + weight_b * static_cast<float>(b[i]));
  }
}

#ifdef SGL_AVX2
template <class T>
SGL_AVX2 void weigh_avx2(const T* a, float weight_a, const T* b, float weight_b, T* out, int64_t count) {
  const __m256 scale_a = _mm256_set1_ps(weight_a), scale_b = _mm256_set1_ps(weight_b);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    store8(out + i, _mm256_add_ps(_mm256_mul_ps(scale_a, load8(a + i)), _mm256_mul_ps(scale_b, load8(b + i))));
  }
  weigh_plain(a + i, weight_a, b + i, weight_b, out + i, count - i);
}
#endif

// out = weight_a * a + weight_b * b, where a weight of 0 hides even NaN.
template <class T>
void weigh(const T* a, float weight_a, const T* b, float weight_b, T* out, int64_t count) {
  if (weight_a == 0.0f && weight_b == 0.0f) return std::fill(out, out + count, static_cast<T>(0.0f));
  if (weight_a == 0.0f) a = b;
  if (weight_b == 0.0f) b = a;
#ifdef SGL_AVX2
  if (has_avx2()) return weigh_avx2(a, weight_a, b, weight_b, out, count);
#endif
  weigh_plain(a, weight_a, b, weight_b, out, count);
}

template <class T>
void run(const MergeStateParams& params) {
  const int64_t num_rows = params.num_tokens * params.num_heads;
  constexpr int64_t kElementsPerThread = 8192;  // some microseconds of work
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, params.head_dim));
  parallel_for(num_rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t token = row / params.num_heads, head = row % params.num_heads;
      float s_a = *at<const float>(params.s_a, token, head), s_b = *at<const float>(params.s_b, token, head);
      if (std::isinf(s_a)) s_a = kEmpty;
      if (std::isinf(s_b)) s_b = kEmpty;
      const float largest = std::max(s_a, s_b);
      const bool empty = largest == kEmpty && !std::isnan(s_a) && !std::isnan(s_b);
      const float power_a = empty ? 0.0f : std::exp2((s_a - largest) * params.log2_base);
      const float power_b = empty ? 0.0f : std::exp2((s_b - largest) * params.log2_base);
      const float sum = power_a + power_b;
      const float scale = empty ? 0.0f : 1.0f / sum;
      weigh(at<const T>(params.v_a, token, head), power_a * scale, at<const T>(params.v_b, token, head),
            power_b * scale, at<T>(params.v_merged, token, head), params.head_dim);
      *at<float>(params.s_merged, token, head) = empty ? kEmpty : largest + std::log2(sum) / params.log2_base;
    }
  });
}

}  // namespace

Status merge_states(const MergeStateParams& params, Stream) {
  SGL_CPU_SWITCH_FLOAT(params.dtype, T, run<T>(params));
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
