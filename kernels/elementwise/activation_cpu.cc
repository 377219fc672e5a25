// Gated activations on the CPU: rows are shared out over the threads, and a row is computed 8 elements at a time with
// AVX2. Few long rows (decode) are shared out in pieces.
#include <algorithm>
#include <cmath>

#include "kernels/base/cpu_avx2.h"
#include "kernels/base/cpu_dtype_switch.h"
#include "kernels/base/parallel.h"
#include "kernels/elementwise/activation_params.h"

namespace sgl_kernel::cpu {
namespace {

constexpr int64_t kPiece = 1024;  // elements of a row that are one unit of work: some 2 µs

template <Activation kActivation>
float activate(float x) {
  if constexpr (kActivation == Activation::kGelu) {
    return 0.5f * x * std::erfc(-x * kSqrtHalf);
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    return x / (1.0f + std::exp(-x * (kGeluTanhLinear + kGeluTanhCubic * x * x)));
  } else {
    return x / (1.0f + std::exp(-x));
  }
}

template <Activation kActivation, class T>
void plain_piece(T* out, const T* gate, const T* up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<T>(activate<kActivation>(static_cast<float>(gate[i])) * static_cast<float>(up[i]));
  }
}

#ifdef SGL_AVX2
template <Activation kActivation, class T>
SGL_AVX2 void avx2_piece(T* out, const T* gate, const T* up, int64_t count) {
  const __m256 minus_one = _mm256_set1_ps(-1.0f), one = _mm256_set1_ps(1.0f);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 x = load8(gate + i);
    __m256 argument = _mm256_mul_ps(x, minus_one);
    if constexpr (kActivation == Activation::kGeluTanh) {
      const __m256 slope =
          _mm256_fmadd_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(kGeluTanhCubic), _mm256_set1_ps(kGeluTanhLinear));
      argument = _mm256_mul_ps(argument, slope);
    }
    const __m256 activated = _mm256_div_ps(x, _mm256_add_ps(one, exp8(argument)));
    store8(out + i, _mm256_mul_ps(activated, load8(up + i)));
  }
  plain_piece<kActivation>(out + i, gate + i, up + i, count - i);
}
#endif

template <Activation kActivation, class T>
void piece(T* out, const T* gate, const T* up, int64_t count) {
#ifdef SGL_AVX2
  if constexpr (kActivation != Activation::kGelu) {  // there is no erf of vectors
    if (has_avx2()) return avx2_piece<kActivation>(out, gate, up, count);
  }
#endif
  plain_piece<kActivation>(out, gate, up, count);
}

template <Activation kActivation, class T>
void run(const ActivationParams& params) {
  const int64_t pieces_per_row = (params.dim + kPiece - 1) / kPiece;
  T* const out = static_cast<T*>(params.out);
  const T* const input = static_cast<const T*>(params.input);
  parallel_for(params.num_rows * pieces_per_row, /*grain=*/std::max<int64_t>(1, 4 * kPiece / params.dim),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t row = i / pieces_per_row, first = i % pieces_per_row * kPiece;
                   const T* gate = input + row * params.input_stride + first;
                   piece<kActivation>(out + row * params.out_stride + first, gate, gate + params.dim,
                                      std::min(kPiece, params.dim - first));
                 }
               });
}

}  // namespace

Status activation_and_mul(const ActivationParams& params, Stream) {
  SGL_CPU_SWITCH_FLOAT(params.dtype, T, {
    switch (params.activation) {
      case Activation::kSilu:
        run<Activation::kSilu, T>(params);
        break;
      case Activation::kGeluTanh:
        run<Activation::kGeluTanh, T>(params);
        break;
      case Activation::kGelu:
        run<Activation::kGelu, T>(params);
        break;
    }
  });
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
