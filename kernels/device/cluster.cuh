// A cluster of blocks (sm_90 and later), from inside a kernel: its blocks run at once, and one can write another's
// shared memory. base/launch.h says which targets have them.
//
//   publish_to_cluster(); … wait_for_cluster();       all blocks have started
//   store_to_block(&values[rank], value, other); …    a value to the same place of another block
//   publish_to_cluster(); wait_for_cluster();         all such stores are visible
#pragma once

#include <cstdint>

#include "kernels/device/copy_async.cuh"

namespace sgl_kernel::SGL_TARGET {

// What every GPU that has clusters can hold.
inline constexpr int kMostClusterBlocks = 8;

// A barrier of all threads of the cluster, in two halves: behind it all blocks have started, and see what the others
// stored before publish_to_cluster(). arrive_at_cluster() orders no ordinary memory.
__device__ __forceinline__ void publish_to_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void arrive_at_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// `own` is in this block's shared memory.
__device__ __forceinline__ void store_to_block(uint32_t* own, uint32_t value, int block) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared_address(own)), "r"(block));
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(remote), "r"(value) : "memory");
}

// What block `block` has where `own` is in this block's shared memory. That block must not have ended.
__device__ __forceinline__ float load_from_block(const float* own, int block) {
  uint32_t remote;
  float value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared_address(own)), "r"(block));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(remote) : "memory");
  return value;
}

}  // namespace sgl_kernel::SGL_TARGET
