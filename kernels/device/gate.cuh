// x / (1 + exp(-g)), what SiLU and GELU's tanh form come down to.
#pragma once

namespace sgl_kernel::SGL_TARGET {

// T is what the result is rounded to. For the narrow types the hardware's exp2 and reciprocal, off by some 1e-7 of the
// result, vanish in the rounding; f32 takes the exact functions.
template <class T>
__device__ __forceinline__ float gate(float x, float g) {
  if constexpr (sizeof(T) == 4) {
    return x / (1.0f + expf(-g));
  } else {
    return __fdividef(x, 1.0f + __expf(-g));  // 0 for a denominator above 2^126, where the result is below 1e-36
  }
}

}  // namespace sgl_kernel::SGL_TARGET
