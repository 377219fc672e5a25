// One block as the group of row.cuh.
#pragma once

#include "kernels/sampling/row.cuh"

namespace sgl_kernel::SGL_TARGET {

class BlockGroup {
 public:
  static constexpr int kMaxSize = 1, kMaxRankBits = 0;
  static constexpr int kCopies = 2;  // pairs of strides that are on their way at once: GPUs with 99 KB have a list, too

  __device__ unsigned rank() const { return 0; }
  __device__ unsigned size() const { return 1; }
  __device__ void arrive() {}
  __device__ void wait() {}
  __device__ void sync() { __syncthreads(); }
  template <class T>
  __device__ T* remote(T* mine, unsigned) const {
    return mine;
  }
};

}  // namespace sgl_kernel::SGL_TARGET
