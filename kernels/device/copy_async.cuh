// Copies from global to shared memory that run while the thread goes on (sm_80 and later), and prefetches.
//
//   copy_async_16(shared, global); commit_copies(); … wait_for_copies<0>(); __syncthreads();
#pragma once

#include <cstdint>

namespace sgl_kernel::SGL_TARGET {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Both addresses are multiples of 16; `shared` is by shared_address().
__device__ __forceinline__ void copy_async_16(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  copy_async_16(shared_address(shared), global);
}

// kBytes is 4, 8 or 16; both addresses are multiples of it. Only the first `bytes` are read, zeros fill the rest.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
  }
}

// Closes the group of this thread's copies since the last call.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's latest groups are still on their way. Other threads see what arrived
// after a barrier.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Asks for a line in the L2 cache. It is no read: allowed before wait_for_predecessor(), whoever writes the line.
__device__ __forceinline__ void prefetch_to_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// The same for `bytes` bytes, a multiple of 16 at a multiple of 16 (sm_90 and later).
__device__ __forceinline__ void prefetch_bulk_to_l2(const void* global, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

}  // namespace sgl_kernel::SGL_TARGET
