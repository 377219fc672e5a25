// The arithmetic that every target shares: how a float is ordered, and how a probability becomes an integer.
//
// Sums of floats depend on their order, and a running sum may even shrink; integers do neither. So a probability p of a
// row counts as mass(p) = round(p * scale) units, where scale is the power of two that takes the row's highest
// probability to 2^31 … 2^32 - 1. A row of 2^31 tokens sums to less than 2^63.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define SGL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SGL_HOST_DEVICE inline
#endif

namespace sgl_kernel {

// A row whose highest probability is lower counts as all zero: the scale of a smaller one is no float.
inline constexpr float kLowestPeak = 1.262177448353619e-29f;  // 2^-96
inline constexpr float kHighestFloat = 3.402823466e38f;

SGL_HOST_DEVICE uint32_t bits_of_float(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

SGL_HOST_DEVICE float float_of_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

// Probabilities: 0 … the highest float, NaN is 0. Their keys, 31 bits, are in the order of their values.
struct ProbKey {
  static constexpr int kBits = 31;
  static constexpr float kLowest = 0.0f;
  static SGL_HOST_DEVICE float clean(float value) {
    value = value > 0.0f ? value : 0.0f;  // NaN is not above
    return value < kHighestFloat ? value : kHighestFloat;
  }
  static SGL_HOST_DEVICE uint32_t key(float clean_value) { return bits_of_float(clean_value); }
  static SGL_HOST_DEVICE float value(uint32_t key) { return float_of_bits(key); }
};

// Logits: any float, NaN is -infinity. Their keys have 32 bits.
struct LogitKey {
  static constexpr int kBits = 32;
  static constexpr float kLowest = -INFINITY;
  static SGL_HOST_DEVICE float clean(float value) { return value == value ? value + 0.0f : kLowest; }  // -0 is 0
  static SGL_HOST_DEVICE uint32_t key(float clean_value) {
    const uint32_t bits = bits_of_float(clean_value);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
  }
  // NaN where the key is none of a float's: below -infinity and above infinity.
  static SGL_HOST_DEVICE float value(uint32_t key) { return float_of_bits(key >> 31 ? key & 0x7fffffffu : ~key); }
};

// `peak` is the row's highest probability, at least kLowestPeak.
SGL_HOST_DEVICE float mass_scale(float peak) {
  // The exponent fields of peak and scale: (e - 127) + (s - 127) = 31.
  return float_of_bits((285u - (bits_of_float(peak) >> 23)) << 23);
}

SGL_HOST_DEVICE uint32_t mass(float value, float scale) {
#ifdef __CUDA_ARCH__
  return __float2uint_rn(value * scale);
#else
  // Next to 1.5 * 2^52 a double's last bits count in ones: the sum rounds to nearest even, as above.
  const double shifted = static_cast<double>(value * scale) + 6755399441055744.0;
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  return static_cast<uint32_t>(bits);
#endif
}

// The least integer mass that is a share p < 1 of `total`, and at least 1.
SGL_HOST_DEVICE uint64_t mass_share(float p, uint64_t total) {
  const double share = ceil(static_cast<double>(p) * static_cast<double>(total));
  return share >= 1.0 ? static_cast<uint64_t>(share) : 1;
}

// Where the radix search splits a key: the leading bits, then two digits of ten.
inline constexpr int kDigitBits = 10;
inline constexpr int kDigits = 1 << kDigitBits;
inline constexpr int kLeadingShift = 2 * kDigitBits;
template <class Key>
inline constexpr int kLeadingBins = 1 << (Key::kBits - kLeadingShift);

// The bin of a row's histogram in which a count or a mass, added up from the highest values down, reaches its target.
struct Bin {
  bool found = false;  // it does
  uint32_t index = 0;
  uint64_t count_above = 0;  // values in higher bins
  uint64_t mass_above = 0;   // their mass
  uint64_t mass = 0;         // of the bin
};

// A prefix of a row's values in the order (value descending, place ascending).
struct Prefix {
  uint32_t key = 0;               // of its last value
  bool alone = false;             // that value has no equal in the row
  uint64_t equals = 0;            // how many values of that key the prefix holds
  uint64_t mass = 0;              // of the prefix
  uint64_t mass_with_equals = 0;  // of all values of that key and higher
};

}  // namespace sgl_kernel
