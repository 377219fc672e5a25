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

// gathered[m, k] = a[m, columns[k]], 16-bit numbers; k is even. x blocks share the rows out, y blocks the columns of
// each. A block with whole rows gathers from a copy in shared memory, where numbers one by one cost least.
template <class Word>
__global__ void __launch_bounds__(kSideThreads)
    gather_columns_kernel(Word* gathered, const Word* a, int64_t a_stride, const int32_t* columns, int64_t m, int64_t k,
                          bool copies) {
  static_assert(sizeof(Word) == 2);
  extern __shared__ __align__(16) Word copy[];
  for (int64_t row = blockIdx.x; row < m; row += gridDim.x) {
    const Word* from = a + row * a_stride;
    if (copies) {
      constexpr int kVector = 8;
      __syncthreads();  // nobody reads the row before
      for (int64_t i = threadIdx.x * kVector; i < k; i += kSideThreads * kVector) {
        *reinterpret_cast<uint4*>(copy + i) = __ldg(reinterpret_cast<const uint4*>(from + i));
      }
      __syncthreads();
      from = copy;
    }
    for (int64_t i = (blockIdx.y * kSideThreads + threadIdx.x) * 2; i < k; i += gridDim.y * kSideThreads * 2) {
      const uint32_t first = from[columns[i]], second = from[columns[i + 1]];
      *reinterpret_cast<uint32_t*>(gathered + row * k + i) = first | second << 16;
    }
  }
}

inline Status gather_columns(const char* operator_name, void* gathered, const void* a, int64_t a_stride,
                             const int32_t* columns, int64_t m, int64_t k, Stream stream) {
  constexpr int64_t kBlocks = 8 * 132;    // an H200's multiprocessors, full
  constexpr int64_t kMostCopied = 16384;  // numbers: 32 KiB
  const int64_t parts = std::clamp<int64_t>(kBlocks / m, 1, (k + 2 * kSideThreads - 1) / (2 * kSideThreads));
  const bool copies =
      parts == 1 && k <= kMostCopied && k % 8 == 0 && a_stride % 8 == 0 && reinterpret_cast<uintptr_t>(a) % 16 == 0;
  return launch(operator_name, gather_columns_kernel<uint16_t>,
                {.grid = dim3(static_cast<unsigned>(std::min(m, kBlocks)), static_cast<unsigned>(parts)),
                 .block = kSideThreads,
                 .shared_bytes = copies ? static_cast<size_t>(k) * 2 : 0},
                stream, static_cast<uint16_t*>(gathered), static_cast<const uint16_t*>(a), a_stride, columns, m, k,
                copies);
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
