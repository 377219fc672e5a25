// Programmatic dependent launch, from inside a kernel. Both are no-ops in a kernel that was launched without it, and
// before sm_90.
#pragma once

namespace sgl_kernel::SGL_TARGET {

#define SGL_TARGET_TEXT_OF(target) #target
#define SGL_TARGET_TEXT(target) SGL_TARGET_TEXT_OF(target)

// 90 for "sm_90a".
constexpr int sm_of(const char* target) {
  int sm = 0;
  for (target += 3; *target >= '0' && *target <= '9'; ++target) sm = 10 * sm + (*target - '0');
  return sm;
}

// Whether this target's code can wait for a predecessor. Only then may it be launched with pdl = true: code of an older
// target, which a newer device runs by way of its PTX, would start before its inputs are there.
inline constexpr bool kHasPdl = sm_of(SGL_TARGET_TEXT(SGL_TARGET)) >= 90;

#undef SGL_TARGET_TEXT
#undef SGL_TARGET_TEXT_OF

// Waits until the kernels that this one depends on have finished and their writes are visible. The "memory" clobber
// keeps the compiler from moving a load above it.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the stream start once every block has called this or ended. It speaks of scheduling alone:
// what this kernel writes is visible to the next one only after its own wait_for_predecessor().
__device__ __forceinline__ void release_successors() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace sgl_kernel::SGL_TARGET
