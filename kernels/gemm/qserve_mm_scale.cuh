// The arithmetic of QServe's groups.
#pragma once

#include <cstdint>

namespace sgl_kernel::SGL_TARGET {

// Four weights times a scale plus a zero, each modulo 256.
__device__ __forceinline__ uint32_t scale_qserve_weights(uint32_t weights, uint32_t scale, uint32_t zero) {
  constexpr uint32_t kEven = 0x00ff00ff;  // two products of 4 and 8 bits fit in 16 bits each
  const uint32_t even = (weights & kEven) * scale, odd = (weights >> 8 & kEven) * scale;
  return __vadd4((even & kEven) | (odd & kEven) << 8, zero * 0x01010101u);
}

}  // namespace sgl_kernel::SGL_TARGET
