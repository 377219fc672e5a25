// How the blocks of a cluster hand each other sums on Hopper: each sends to the others' shared memory, whose barriers
// count the bytes. Nobody reads another's memory, so a block may end as soon as it has what it waits for.
//
//   if (threadIdx.x == 0) { received.init(1); fence_barrier_init(); received.arrive_and_expect(bytes); }
//   __syncwarp(); arrive_at_cluster(); …; wait_for_cluster(); send_to_block(…) … ; received.wait(0);
#pragma once

#include <cstdint>

#include "kernels/device/cluster.cuh"
#include "kernels/device/pipeline_sm90.cuh"

namespace sgl_kernel::SGL_TARGET {

// Clusters of 1, 2, … blocks that an H200 holds if a multiprocessor holds two blocks, as CUDA says (2026-11-23): fewer
// than its blocks would be, as clusters do not spread over groups of multiprocessors.
inline constexpr int kClustersAtOnce[kMostClusterBlocks] = {264, 132, 79, 62, 47, 39, 32, 30};
// The same if a multiprocessor holds one block, or had better.
inline constexpr int kSpreadClustersAtOnce[kMostClusterBlocks] = {132, 66, 39, 30, 22, 17, 15, 15};

// Stores `value` where block `rank` has what is `mine` here, and tells its barrier.
__device__ __forceinline__ void send_to_block(uint32_t rank, const void* mine, const float4& value,
                                              const Barrier* barrier) {
  asm volatile(
      "{\n"
      ".reg .b32 to, told;\n"
      "mapa.shared::cluster.u32 to, %0, %2;\n"
      "mapa.shared::cluster.u32 told, %1, %2;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [to], {%3, %4, %5, %6}, [told];\n"
      "}\n" ::"r"(shared_address(mine)),
      "r"(shared_address(barrier)), "r"(rank), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
      : "memory");
}

__device__ __forceinline__ void add_to(float4& total, const float4& part) {
  total.x += part.x;
  total.y += part.y;
  total.z += part.z;
  total.w += part.w;
}

}  // namespace sgl_kernel::SGL_TARGET
