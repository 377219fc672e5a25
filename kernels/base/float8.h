// The CPU's view of float8 e4m3fn (sign, 4 exponent bits of bias 7, 3 mantissa bits; no infinity; NaN is 0x7f).
// Rounding is to nearest even and saturates at ±448, infinities included, as the GPU's conversion with .satfinite does;
// every NaN becomes 0x7f.
#pragma once

#include <cstdint>

#include "kernels/base/float_types.h"

namespace sgl_kernel {

inline constexpr float kE4M3Max = 448.0f;

struct Float8E4M3 {
  uint8_t bits = 0;
  Float8E4M3() = default;
  explicit Float8E4M3(float value);
  operator float() const;
};

// Without branches, so that a loop of it becomes vectors.
inline Float8E4M3::Float8E4M3(float value) {
  constexpr uint32_t kInfinity = 0x7f800000, kLargest = 0x43e00000;  // 448
  constexpr uint32_t kSmallestNormal = 0x3c800000;                   // 2^-6
  constexpr uint32_t kRebias = (127u - 7) << 23;
  constexpr float kSubnormalStep = 16384.0f;  // in [2^14, 2^15) floats are 2^-9 apart, as the subnormals are
  const uint32_t wide = internal::bits_of(value);
  const uint32_t magnitude = wide & 0x7fffffff;
  const uint32_t inside = magnitude < kLargest ? magnitude : kLargest;
  const uint32_t odd = (inside >> 20) & 1;
  const uint32_t normal = (inside - kRebias + 0x7ffff + odd) >> 20;
  const uint32_t subnormal =
      internal::bits_of(internal::float_of(inside) + kSubnormalStep) - internal::bits_of(kSubnormalStep);
  const uint32_t rounded = inside < kSmallestNormal ? subnormal : normal;
  bits = static_cast<uint8_t>(magnitude > kInfinity ? 0x7f : rounded | (wide >> 24 & 0x80));
}

inline Float8E4M3::operator float() const {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24, magnitude = bits & 0x7f;
  if (magnitude == 0x7f) return internal::float_of(sign | 0x7fc00000);
  if (magnitude < 8) {  // subnormal: 2^-9 steps, exact in float
    const float value = static_cast<float>(magnitude) * 0.001953125f;
    return sign != 0 ? -value : value;
  }
  return internal::float_of(sign | ((magnitude << 20) + ((127u - 7) << 23)));
}

}  // namespace sgl_kernel
