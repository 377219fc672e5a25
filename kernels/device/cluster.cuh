// A cluster of blocks (sm_90 and later), from inside a kernel: its blocks run at once, and one can write another's
// shared memory. base/launch.h says which targets have them.
//
//   cluster_arrive(); … cluster_wait();               all blocks have started
//   store_to_block(&values[rank], value, other); …    a value to the same place of another block
//   cluster_arrive(); cluster_wait();                 all such stores are visible
#pragma once

#include <cstdint>

#include "kernels/device/copy_async.cuh"

namespace sgl_kernel::SGL_TARGET {

// A barrier of all threads of the cluster, in two halves: what was stored before the first is visible after the second.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// `own` is in this block's shared memory.
__device__ __forceinline__ void store_to_block(uint32_t* own, uint32_t value, int block) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared_address(own)), "r"(block));
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(remote), "r"(value) : "memory");
}

}  // namespace sgl_kernel::SGL_TARGET
