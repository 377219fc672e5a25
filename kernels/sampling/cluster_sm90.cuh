// A thread-block cluster as a group of row.cuh: its ranks read and write each other's shared memory.
#pragma once

#include <cooperative_groups.h>

#include "kernels/sampling/row.cuh"

namespace sgl_kernel::SGL_TARGET {

class ClusterGroup {
 public:
  static constexpr int kMaxSize = kMaxRanks;

  __device__ ClusterGroup()
      : rank_(cooperative_groups::this_cluster().block_rank()),
        size_(cooperative_groups::this_cluster().num_blocks()) {}

  __device__ unsigned rank() const { return rank_; }
  __device__ unsigned size() const { return size_; }
  // arrive() … wait() says that all ranks have started, sync() is both: what was written before is visible after.
  __device__ void arrive() { cooperative_groups::this_cluster().barrier_arrive(); }
  __device__ void wait() { cooperative_groups::this_cluster().barrier_wait(); }
  __device__ void sync() { cooperative_groups::this_cluster().sync(); }
  template <class T>
  __device__ T* remote(T* mine, unsigned rank) const {
    return cooperative_groups::this_cluster().map_shared_rank(mine, rank);
  }

 private:
  unsigned rank_, size_;
};

// Two blocks of 512 threads share a multiprocessor, so that one loads its row while the other searches. Their slices of
// up to 19100 floats then stay in shared memory; a longer row is held by fewer blocks, and the longest is read from
// global memory in every pass.
inline constexpr int kClusterThreads = 512;
inline constexpr int kTwoBlocksSlice = 19100;

// How a row of that length is split. `other_bytes` is what a block has beside the slice.
struct ClusterShape {
  int ranks;
  int slice_size;
  bool resident;
};

inline ClusterShape cluster_shape(int64_t vocab, size_t other_bytes) {
  constexpr size_t kBlockBytes = 206 * 1024;  // of 227 KiB, less RowShared
  int ranks = 1;
  while (ranks < kMaxRanks && vocab > static_cast<int64_t>(ranks) * kTwoBlocksSlice) ranks *= 2;
  const int size = slice_size(vocab, ranks);
  return {ranks, size, size * sizeof(float) + other_bytes <= kBlockBytes};
}

}  // namespace sgl_kernel::SGL_TARGET
