// Vectors of 16 bytes (or fewer): what a thread loads and stores at once, and its elements as float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace sgl_kernel::SGL_TARGET {

template <class T>
__device__ __forceinline__ float to_float(T value) {
  return static_cast<float>(value);
}

// Rounds to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// Two elements of 16 bits: rounded together by one instruction, and as floats.
template <class T>
struct PairOf;
template <>
struct PairOf<__half> {
  using Type = __half2;
  static __device__ __forceinline__ Type round(float low, float high) { return __floats2half2_rn(low, high); }
  static __device__ __forceinline__ float2 to_floats(Type pair) { return __half22float2(pair); }
};
template <>
struct PairOf<__nv_bfloat16> {
  using Type = __nv_bfloat162;
  static __device__ __forceinline__ Type round(float low, float high) { return __floats2bfloat162_rn(low, high); }
  // An instruction each, where the conversions of single elements take two for the high one.
  static __device__ __forceinline__ float2 to_floats(Type pair) {
    const uint32_t bits = *reinterpret_cast<const uint32_t*>(&pair);
    return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000)};
  }
};

// kSize elements that lie together; aligned to their total size, which is at most 16 bytes.
template <class T, int kSize>
struct alignas(sizeof(T) * kSize) Vec {
  T values[kSize];

  __device__ __forceinline__ T& operator[](int i) { return values[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return values[i]; }

  static __device__ __forceinline__ Vec load(const T* pointer) { return *reinterpret_cast<const Vec*>(pointer); }
  __device__ __forceinline__ void store(T* pointer) const { *reinterpret_cast<Vec*>(pointer) = *this; }
};

// Four words at an address of shared memory (copy_async.cuh), a multiple of 16.
__device__ __forceinline__ uint4 load_shared(uint32_t address) {
  uint4 four;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w)
               : "r"(address));
  return four;
}

// One of four, by a constant.
__device__ __forceinline__ uint32_t word_of(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// The widest vector of T: 16 bytes.
template <class T>
inline constexpr int kVecSize = 16 / sizeof(T);

// Has the compiler keep a vector as it is stored, not as the floats that it was rounded from: half the registers.
template <class T, int kSize>
__device__ __forceinline__ void hold_packed(Vec<T, kSize>& vector) {
  if constexpr (sizeof(vector) % 4 == 0) {
#pragma unroll
    for (int word = 0; word < sizeof(vector) / 4; ++word) asm("" : "+r"(reinterpret_cast<uint32_t*>(&vector)[word]));
  }
}

}  // namespace sgl_kernel::SGL_TARGET
