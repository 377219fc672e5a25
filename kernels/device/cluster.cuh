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

// The 16 bytes that another block, or this one, has in the place of `own`.
__device__ __forceinline__ uint4 load_from_block(const void* own, int block) {
  uint4 value;
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [remote];\n"
      "}\n"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "r"(shared_address(own)), "r"(block)
      : "memory");
  return value;
}

// Where another block, or this one, has what lies at an address of this one's shared memory.
__device__ __forceinline__ uint32_t address_in_block(uint32_t own, int block) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(own), "r"(block));
  return address;
}

// Four numbers to such an address, a multiple of 16.
__device__ __forceinline__ void store_to_cluster(uint32_t address, float a, float b, float c, float d) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(a), "f"(b), "f"(c), "f"(d)
               : "memory");
}
__device__ __forceinline__ void store_to_cluster(uint32_t address, int32_t a, int32_t b, int32_t c, int32_t d) {
  asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

}  // namespace sgl_kernel::SGL_TARGET
