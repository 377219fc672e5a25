// What surrounds a product with a weight of a few bits: a's columns gathered before it, the splits' sums added after
// it. Both are small and memory-bound: a thread takes two elements of a row.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"

namespace sgl_kernel::SGL_TARGET::mixed_mm {

template <class T>
using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;

template <class T>
__device__ __forceinline__ Pair<T> to_pair(float first, float second) {
  if constexpr (std::is_same_v<T, __half>) {
    return __floats2half2_rn(first, second);
  } else {
    return __floats2bfloat162_rn(first, second);
  }
}

inline constexpr int kSideThreads = 256;

inline unsigned side_blocks(int64_t count) {
  constexpr int64_t kMost = 4096;  // threads go on to further elements beyond
  return static_cast<unsigned>(std::min((count + kSideThreads - 1) / kSideThreads, kMost));
}

// gathered[m, k] = a[m, columns[k]], numbers of Word's size.
template <class Word>
__global__ void __launch_bounds__(kSideThreads) gather_columns_kernel(Word* gathered, const Word* a, int64_t a_stride,
                                                                      const int32_t* columns, int64_t m, int64_t k) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kSideThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSideThreads + threadIdx.x; i < m * k; i += step) {
    gathered[i] = a[i / k * a_stride + columns[i % k]];
  }
}

inline Status gather_columns(const char* operator_name, void* gathered, const void* a, int64_t a_stride,
                             const int32_t* columns, int64_t m, int64_t k, Stream stream) {
  return launch(operator_name, gather_columns_kernel<uint16_t>, {.grid = side_blocks(m * k), .block = kSideThreads},
                stream, static_cast<uint16_t*>(gathered), static_cast<const uint16_t*>(a), a_stride, columns, m, k);
}

// The factor of every result: `constant`, times *scale if there is one.
template <class T>
__device__ __forceinline__ float result_factor(const T* scale, float constant) {
  return scale == nullptr ? constant : static_cast<float>(*scale) * constant;
}

// result[i] = factor * sum over splits, in their order, of partials[split, i]; count is even.
template <class T>
__global__ void __launch_bounds__(kSideThreads)
    add_splits_kernel(T* result, const float* partials, int num_splits, int64_t count, const T* scale, float constant) {
  wait_for_predecessor();
  const float factor = result_factor(scale, constant);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kSideThreads * 2;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kSideThreads + threadIdx.x) * 2; i < count; i += step) {
    float2 sum = make_float2(0.0f, 0.0f);
    for (int split = 0; split < num_splits; ++split) {
      const float2 part = *reinterpret_cast<const float2*>(partials + split * count + i);
      sum.x += part.x;
      sum.y += part.y;
    }
    *reinterpret_cast<Pair<T>*>(result + i) = to_pair<T>(sum.x * factor, sum.y * factor);
  }
}

template <class T>
Status add_splits(const char* operator_name, T* result, const float* partials, int num_splits, int64_t count,
                  const T* scale, float constant, Stream stream) {
  return launch(operator_name, add_splits_kernel<T>,
                {.grid = side_blocks(count / 2), .block = kSideThreads, .pdl = true}, stream, result, partials,
                num_splits, count, scale, constant);
}

// Which steps along K a warp takes: `part` of `parts` ranges that differ by a step at most, in the order of K.
struct StepRange {
  int begin, end;
};
class StepRanges {
 public:
  __device__ __forceinline__ StepRanges(int steps, int parts) : least_(steps / parts), longer_(steps % parts) {}

  __device__ __forceinline__ StepRange of(int part) const {
    const int begin = part * least_ + min(part, longer_);
    return {begin, begin + least_ + (part < longer_ ? 1 : 0)};
  }
  __device__ __forceinline__ int longest() const { return least_ + (longer_ > 0 ? 1 : 0); }

 private:
  int least_, longer_;
};

}  // namespace sgl_kernel::SGL_TARGET::mixed_mm
