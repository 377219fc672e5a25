// A thread-block cluster as a group of row.cuh: its ranks read and write each other's shared memory.
#pragma once

#include <cooperative_groups.h>

#include "kernels/sampling/row.cuh"

namespace sgl_kernel::SGL_TARGET {

class ClusterGroup {
 public:
  static constexpr int kMaxSize = kMaxRanks, kMaxRankBits = 3;
  static constexpr int kCopies = 5;  // pairs of strides that are on their way at once: 80 KB

  __device__ ClusterGroup()
      : rank_(cooperative_groups::this_cluster().block_rank()),
        size_(cooperative_groups::this_cluster().num_blocks()) {}

  __device__ unsigned rank() const { return rank_; }
  __device__ unsigned size() const { return size_; }
  // arrive() … wait() says that all ranks have started, sync() is both: what was written before is visible after.
  __device__ void arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;"); }  // nothing was written
  __device__ void wait() { cooperative_groups::this_cluster().barrier_wait(); }
  __device__ void sync() { cooperative_groups::this_cluster().sync(); }
  template <class T>
  __device__ T* remote(T* mine, unsigned rank) const {
    return cooperative_groups::this_cluster().map_shared_rank(mine, rank);
  }

 private:
  unsigned rank_, size_;
};

}  // namespace sgl_kernel::SGL_TARGET
