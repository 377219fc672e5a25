// The arithmetic of QServe's groups.
#pragma once

#include <cstdint>

namespace sgl_kernel::SGL_TARGET {

// Four weights, the low bits of each byte, times a scale plus a zero, each modulo 256. A product of 4 and 8 bits and
// the zero fit in 12 bits, so that two of them, 16 bits apart, do not meet.
__device__ __forceinline__ uint32_t scale_qserve_weights(uint32_t weights, uint32_t scale, uint32_t zero) {
  const uint32_t even = (weights & 0x000f000f) * scale + zero * 0x00010001;
  const uint32_t odd = (weights & 0x0f000f00) * scale + zero * 0x01000100;
  return __byte_perm(even, odd, 0x7250);
}

}  // namespace sgl_kernel::SGL_TARGET
