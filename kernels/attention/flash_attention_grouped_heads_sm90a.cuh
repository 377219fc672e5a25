// Attention of few queries on Hopper: the splits of a cluster are merged in its shared memory, so that most calls are
// one kernel without partial results.
#pragma once

#include <cooperative_groups.h>

#include "kernels/attention/flash_attention_grouped_heads.cuh"

namespace sgl_kernel::SGL_TARGET {

class ClusterBlocks {
 public:
  static constexpr int kMostBlocks = kMostMergedSplits;

  __device__ __forceinline__ ClusterBlocks()
      : rank_(cooperative_groups::this_cluster().block_rank()),
        count_(cooperative_groups::this_cluster().num_blocks()) {}

  __device__ __forceinline__ int rank() const { return rank_; }
  __device__ __forceinline__ int count() const { return count_; }
  // What the blocks wrote to shared memory before is visible to all of them after.
  __device__ __forceinline__ void sync() const { cooperative_groups::this_cluster().sync(); }
  // Keeps a block until the others have read what they want of it. Orders no memory: a plain sync() would wait for this
  // block's writes to global memory too.
  __device__ __forceinline__ void wait_for_readers() const {
    asm volatile(
        "barrier.cluster.arrive.relaxed.aligned;\n"
        "barrier.cluster.wait.aligned;" ::
            : "memory");
  }
  // Where block `rank` has what is `mine` here.
  template <class T>
  __device__ __forceinline__ const T* of(T* mine, int rank) const {
    return cooperative_groups::this_cluster().map_shared_rank(mine, rank);
  }

  template <class Kernel>
  static Status allow(Kernel kernel, int cluster) {
    constexpr int kMostPortableCluster = 8;
    if (cluster <= kMostPortableCluster) return OkStatus();
    return cuda_status("fwd", cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  }

 private:
  int rank_, count_;
};

}  // namespace sgl_kernel::SGL_TARGET
