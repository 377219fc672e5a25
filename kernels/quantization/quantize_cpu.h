// What the CPU targets of the quantization share: loops over floats that the compiler makes vectors of, compiled for
// AVX2 where the CPU has it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/base/cpu_avx2.h"
#include "kernels/base/float_types.h"

namespace sgl_kernel::cpu {

// Elements that are converted to float at a time; a multiple of all group sizes.
inline constexpr int64_t kFloatPiece = 512;

// Magnitudes are compared as the bits of non-negative floats, which order like the floats with NaN above infinity: one
// integer maximum that keeps a NaN.
inline uint32_t magnitude_bits(float value) { return internal::bits_of(value) & 0x7fffffff; }

namespace plain {

template <class T>
inline void to_floats(float* to, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

inline uint32_t amax_bits(const float* values, int64_t count) {
  uint32_t amax = 0;
  for (int64_t i = 0; i < count; ++i) amax = std::max(amax, magnitude_bits(values[i]));
  return amax;
}

inline void times_to_e4m3(uint8_t* to, const float* values, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = Float8E4M3(values[i] * factor).bits;
}

template <class T>
inline void silu_and_mul_to_floats(float* values, const T* gate, const T* up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float x = static_cast<float>(gate[i]);
    const float product = x / (1.0f + std::exp(-x)) * static_cast<float>(up[i]);
    values[i] = static_cast<float>(static_cast<T>(product));
  }
}

}  // namespace plain

#ifdef SGL_AVX2
namespace avx2 {

template <class T>
SGL_AVX2 inline void to_floats(float* to, const T* from, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, load8(from + i));
  for (; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

SGL_AVX2 inline uint32_t amax_bits(const float* values, int64_t count) {
  uint32_t amax = 0;
  for (int64_t i = 0; i < count; ++i) amax = std::max(amax, magnitude_bits(values[i]));
  return amax;
}

SGL_AVX2 inline void times_to_e4m3(uint8_t* to, const float* values, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = Float8E4M3(values[i] * factor).bits;
}

// `count` is a multiple of 8.
template <class T>
SGL_AVX2 inline void silu_and_mul_to_floats(float* values, const T* gate, const T* up, int64_t count) {
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 x = load8(gate + i);
    const __m256 denominator = _mm256_add_ps(_mm256_set1_ps(1.0f), exp8(_mm256_sub_ps(_mm256_setzero_ps(), x)));
    T rounded[8];
    store8(rounded, _mm256_mul_ps(_mm256_div_ps(x, denominator), load8(up + i)));
    _mm256_storeu_ps(values + i, load8(rounded));
  }
}

}  // namespace avx2
#endif

#ifdef SGL_AVX2
#define SGL_CPU_LOOP(function, ...) (has_avx2() ? avx2::function(__VA_ARGS__) : plain::function(__VA_ARGS__))
#else
#define SGL_CPU_LOOP(function, ...) plain::function(__VA_ARGS__)
#endif

template <class T>
inline void to_floats(float* to, const T* from, int64_t count) {
  SGL_CPU_LOOP(to_floats, to, from, count);
}

// The largest magnitude, as bits of a float.
inline uint32_t amax_bits(const float* values, int64_t count) { return SGL_CPU_LOOP(amax_bits, values, count); }

inline void times_to_e4m3(uint8_t* to, const float* values, float factor, int64_t count) {
  SGL_CPU_LOOP(times_to_e4m3, to, values, factor, count);
}

// values = silu(gate) * up, rounded to T: what silu_and_mul() writes. `count` is a multiple of 8.
template <class T>
inline void silu_and_mul_to_floats(float* values, const T* gate, const T* up, int64_t count) {
  SGL_CPU_LOOP(silu_and_mul_to_floats, values, gate, up, count);
}

#undef SGL_CPU_LOOP

}  // namespace sgl_kernel::cpu
