// Rotary embedding on the CPU: tokens are shared out over the threads; a head of neighbouring halves (NeoX) is rotated
// 8 pairs at a time with AVX2.
#include <algorithm>
#include <cstring>

#include "kernels/base/cpu_avx2.h"
#include "kernels/base/cpu_dtype_switch.h"
#include "kernels/base/parallel.h"
#include "kernels/elementwise/rope_params.h"

namespace sgl_kernel::cpu {
namespace {

int64_t at(const Indices& indices, int64_t i) {
  return indices.is_64 ? static_cast<const int64_t*>(indices.data)[i] : static_cast<const int32_t*>(indices.data)[i];
}

template <class T>
T* head(const Heads& heads, int64_t token, int64_t head) {
  return static_cast<T*>(heads.data) + token * heads.stride + head * heads.head_stride;
}

// Pairs i, from `first` on, of a head whose pair i is (in[i * step], in[i * step + gap]).
template <class T, class CacheT>
void rotate_pairs(const T* in, T* out, const CacheT* cos, const CacheT* sin, int first, int num_pairs, int step,
                  int gap) {
  for (int i = first; i < num_pairs; ++i) {
    const float x = static_cast<float>(in[i * step]), y = static_cast<float>(in[i * step + gap]);
    const float c = static_cast<float>(cos[i]), s = static_cast<float>(sin[i]);
    out[i * step] = static_cast<T>(x * c - y * s);
    out[i * step + gap] = static_cast<T>(y * c + x * s);
  }
}

#ifdef SGL_AVX2
// Returns the number of pairs done, the largest multiple of 8.
template <class T, class CacheT>
SGL_AVX2 int rotate_halves(const T* in, T* out, const CacheT* cos, const CacheT* sin, int num_pairs) {
  int i = 0;
  for (; i + 8 <= num_pairs; i += 8) {
    const __m256 x = load8(in + i), y = load8(in + num_pairs + i);
    const __m256 c = load8(cos + i), s = load8(sin + i);
    store8(out + i, _mm256_sub_ps(_mm256_mul_ps(x, c), _mm256_mul_ps(y, s)));
    store8(out + num_pairs + i, _mm256_add_ps(_mm256_mul_ps(y, c), _mm256_mul_ps(x, s)));
  }
  return i;
}
#endif

template <class T, class CacheT>
void rotate_head(const RopeParams& params, const T* in, T* out, const CacheT* cos) {
  const int num_pairs = params.rotary_dim / 2;
  const CacheT* const sin = cos + num_pairs;
  if (params.interleave) {
    rotate_pairs(in, out, cos, sin, 0, num_pairs, /*step=*/2, /*gap=*/1);
  } else {
    int done = 0;
#ifdef SGL_AVX2
    if (has_avx2()) done = rotate_halves(in, out, cos, sin, num_pairs);
#endif
    rotate_pairs(in, out, cos, sin, done, num_pairs, /*step=*/1, /*gap=*/num_pairs);
  }
  if (in != out) std::copy(in + params.rotary_dim, in + params.head_dim, out + params.rotary_dim);
}

template <class T, class CacheT>
void run(const RopeParams& params) {
  const int64_t heads_per_token = params.num_q_heads + params.num_k_heads;
  constexpr int64_t kElementsPerThread = 8192;  // some microseconds of work
  const int64_t grain =
      std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, heads_per_token * params.head_dim));
  parallel_for(params.num_tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const CacheT* const cos =
          static_cast<const CacheT*>(params.cos_sin_cache) + at(params.positions, token) * params.cache_stride;
      for (int h = 0; h < params.num_q_heads; ++h) {
        rotate_head(params, head<const T>(params.q, token, h), head<T>(params.q_rope, token, h), cos);
      }
      for (int h = 0; h < params.num_k_heads; ++h) {
        T* const rotated = head<T>(params.k_rope, token, h);
        rotate_head(params, head<const T>(params.k, token, h), rotated, cos);
        if (params.v.data == nullptr) continue;
        const int64_t slot = at(params.slots, token);
        std::copy_n(rotated, params.head_dim, head<T>(params.k_buffer, slot, h));
        std::copy_n(head<const T>(params.v, token, h), params.head_dim, head<T>(params.v_buffer, slot, h));
      }
    }
  });
}

}  // namespace

Status rope(const RopeParams& params, Stream) {
  SGL_CPU_SWITCH_FLOAT(params.dtype, T, {
    if (params.cache_dtype == DType::kF32) {
      run<T, float>(params);
    } else {
      run<T, T>(params);
    }
  });
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
