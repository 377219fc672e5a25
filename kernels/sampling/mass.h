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
  static constexpr int kLeadingShift = 18, kLeadingBins = 1024;  // 32 of each power of two
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
  static constexpr int kLeadingShift = 20, kLeadingBins = 4096;
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

// Where the radix search splits a key: the leading bits, then digits of nine.
inline constexpr int kDigitBits = 9;
inline constexpr int kDigits = 1 << kDigitBits;

// The bins of a row's leading bits. The row's highest key lies in the last bin or below; where the keys have more
// leading bits than there are bins, the lowest ones share bin 0.
template <class Key>
struct LeadingBins {
  uint32_t base = 0;  // leading bits of bin 0

  static SGL_HOST_DEVICE LeadingBins of(uint32_t highest_key) {
    const uint32_t leading = highest_key >> Key::kLeadingShift, last = Key::kLeadingBins - 1;
    return {leading > last ? leading - last : 0};
  }
  SGL_HOST_DEVICE uint32_t bin(uint32_t key) const {
    const uint32_t leading = key >> Key::kLeadingShift;
    return leading > base ? leading - base : 0;
  }
  SGL_HOST_DEVICE uint32_t lowest_key(uint32_t bin) const { return bin == 0 ? 0 : (bin + base) << Key::kLeadingShift; }
  // Of the highest digit in which keys of the bin differ. In bin 0 that is all of them.
  static SGL_HOST_DEVICE int first_shift(uint32_t bin) {
    return bin == 0 ? 3 * kDigitBits : (Key::kLeadingShift - 1) / kDigitBits * kDigitBits;
  }
};

// The bits of a key above a digit.
SGL_HOST_DEVICE uint32_t above_digit(uint32_t key, int shift) {
  return shift + kDigitBits < 32 ? key >> (shift + kDigitBits) : 0;
}

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
