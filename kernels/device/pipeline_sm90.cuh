// What warps of one block use to hand work to each other on Hopper: mbarriers in shared memory, named barriers, the
// ring of stages between a producer and its consumers, and the split of the register file between them.
#pragma once

#include <cstdint>

#include "kernels/device/copy_async.cuh"

namespace sgl_kernel::SGL_TARGET {

// A transaction barrier in shared memory (PTX mbarrier). A phase ends when `count` arrivals and all expected bytes have
// come; the barrier is then ready for the next phase. Phases are named by their parity: 0, 1, 0, …
struct Barrier {
  uint64_t state;

  // One thread, before anybody uses it; then fence_barrier_init() and a barrier of the block.
  __device__ __forceinline__ void init(uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(count) : "memory");
  }

  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }

  // The same for some threads, without a branch, which would part the instructions around it.
  __device__ __forceinline__ void arrive_if(bool arrives) {
    asm volatile(
        "{\n"
        ".reg .pred arrives;\n"
        "setp.ne.b32 arrives, %1, 0;\n"
        "@arrives mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];\n"
        "}\n" ::"r"(shared_address(this)),
        "r"(static_cast<int>(arrives))
        : "memory");
  }

  // Arrives when all earlier copies of this thread (copy_async.cuh) have; one of the `count` arrivals.
  __device__ __forceinline__ void arrive_after_copies() {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(this)) : "memory");
  }

  // Arrives and adds `bytes` to what the copy engine has to deliver before the phase ends.
  __device__ __forceinline__ void arrive_and_expect(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)),
                 "r"(bytes)
                 : "memory");
  }

  // True once the phase of this parity has ended. A fresh barrier counts as having ended a phase of parity 1.
  __device__ __forceinline__ bool try_wait(uint32_t parity) const {
    uint32_t done;
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}\n"
        : "=r"(done)
        : "r"(shared_address(this)), "r"(parity)
        : "memory");
    return done != 0;
  }

  __device__ __forceinline__ void wait(uint32_t parity) const {
#ifdef SGL_BARRIER_SPIN_LIMIT  // debug builds: a deadlock ends the kernel with an error instead of hanging the GPU
    for (int spins = 0; !try_wait(parity); ++spins) {
      if (spins == SGL_BARRIER_SPIN_LIMIT) __trap();
    }
#else
    while (!try_wait(parity)) {
    }
#endif
  }
};

// Makes init() visible to the copy engine.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Orders this thread's ordinary writes to shared memory before later reads by the tensor cores and the copy engine. The
// writing threads call it; a barrier then tells the thread that issues the read.
__device__ __forceinline__ void fence_shared_for_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Barriers by number (0 is __syncthreads()): `num_threads` threads in all arrive or sync, those that sync wait.
__device__ __forceinline__ void named_barrier_sync(int id, int num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

// The blocks of a cluster: the rank of this one, and a barrier of all their threads. What was written to shared memory
// before the barrier is visible behind it.
__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

// The same where nothing that was written counts: it does not wait for this block's stores to memory.
__device__ __forceinline__ void cluster_sync_relaxed() {
  asm volatile(
      "barrier.cluster.arrive.relaxed;\n"
      "barrier.cluster.wait;" ::
          : "memory");
}

// A warpgroup gives registers back to the block's pool, or takes more. kCount is a multiple of 8; the sum over the
// block must fit what it was launched with.
template <int kCount>
__device__ __forceinline__ void give_back_registers_down_to() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void take_registers_up_to() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// A place in a ring of kStages buffers. The consumer waits on full[index] with `parity`; the producer waits on
// empty[index] with `parity ^ 1`, which passes at once in the first round.
template <int kStages>
struct RingPosition {
  int index = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++index == kStages) {
      index = 0;
      parity ^= 1;
    }
  }
  // advance() that many times.
  __device__ __forceinline__ void skip(int count) {
    index += count;
    parity ^= index / kStages & 1;
    index %= kStages;
  }
};

// One lane of a converged warp.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred elected;\n"
      "elect.sync _|elected, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, elected;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
}

}  // namespace sgl_kernel::SGL_TARGET
