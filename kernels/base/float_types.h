// The CPU's view of the narrow float types: storage structs that convert to and from float. Rounding is to nearest
// even, as on the GPU; NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

namespace sgl_kernel {

inline constexpr float kE4M3Max = 448.0f;

struct Half {
  uint16_t bits = 0;
  Half() = default;
  explicit Half(float value);
  operator float() const;
};

struct BFloat16 {
  uint16_t bits = 0;
  BFloat16() = default;
  explicit BFloat16(float value);
  operator float() const;
};

// float8_e4m3fn: sign, 4 exponent bits of bias 7, 3 mantissa bits; no infinities. What is above 448, the largest value,
// becomes that, infinity too, and every NaN becomes 0x7f, as in the GPU's conversion with .satfinite.
struct Float8E4M3 {
  uint8_t bits = 0;
  Float8E4M3() = default;
  explicit Float8E4M3(float value);
  operator float() const;
};

namespace internal {
inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
}  // namespace internal

inline BFloat16::BFloat16(float value) {
  const uint32_t wide = internal::bits_of(value);
  if (value != value) {
    bits = static_cast<uint16_t>((wide >> 16) | 0x40);  // quiet
  } else {
    bits = static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
  }
}

inline BFloat16::operator float() const { return internal::float_of(static_cast<uint32_t>(bits) << 16); }

inline Half::Half(float value) {
  const uint32_t wide = internal::bits_of(value);
  const uint32_t sign = (wide >> 16) & 0x8000;
  const uint32_t magnitude = wide & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    bits = static_cast<uint16_t>(sign | 0x7e00);  // NaN
  } else if (magnitude >= 0x477ff000) {
    bits = static_cast<uint16_t>(sign | 0x7c00);  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 lets the float adder shift and round at 2^-24, half's smallest step.
    const float shifted = internal::float_of(magnitude) + 0.5f;
    bits = static_cast<uint16_t>(sign | (internal::bits_of(shifted) - 0x3f000000));
  } else {
    const uint32_t odd = (magnitude >> 13) & 1;
    bits = static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13));
  }
}

inline Half::operator float() const {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t magnitude = bits & 0x7fff;
  if (magnitude >= 0x7c00) return internal::float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude < 0x400) {
    // 2^-24 steps; exact in float.
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return sign != 0 ? -value : value;
  }
  return internal::float_of(sign | ((magnitude << 13) + 0x38000000));
}

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
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24;
  const uint32_t magnitude = bits & 0x7f;
  if (magnitude == 0x7f) return internal::float_of(sign | 0x7fc00000);
  if (magnitude < 0x08) {
    const float value = static_cast<float>(magnitude) * 0.001953125f;  // 2^-9 steps
    return sign != 0 ? -value : value;
  }
  return internal::float_of(sign | ((magnitude << 20) + 0x3c000000));
}

}  // namespace sgl_kernel
