// The arithmetic that every target shares: how a float is ordered, and how a probability becomes an integer.
//
// Sums of floats depend on their order, and a running sum may even shrink; integers do neither. So a probability p of a
// row counts as mass(p) = round(p * scale) units, where scale is a power of two: one and the same for all rows with a
// usual peak (highest probability), so that they can be summed before the peak is known. Other rows have it by their
// peak. A row sums to less than 2^63.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/base/host_device.h"

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

// What a key's search needs to know beside the order: keys kFirst … kEnd - 1 are searched, and the lower ones are those
// of values that every filter may keep: a probability of 0 adds nothing, a logit of -infinity stays what it is.

// Probabilities: 0 … the highest float, NaN is 0. Their keys, 31 bits, are in the order of their values.
struct ProbKey {
  static constexpr bool kHasMass = true;
  static constexpr float kLowest = 0.0f;
  static constexpr uint32_t kFirst = 1, kEnd = 0x7f800000u;
  static constexpr int kBits = 31;
  static SGL_HOST_DEVICE float clean(float value) {
    value = value > 0.0f ? value : 0.0f;  // NaN is not above
    return value < kHighestFloat ? value : kHighestFloat;
  }
  static SGL_HOST_DEVICE uint32_t key(float clean_value) { return bits_of_float(clean_value); }
  static SGL_HOST_DEVICE float value(uint32_t key) { return float_of_bits(key); }
};

// Logits: any float, NaN is -infinity. Their keys have 32 bits.
struct LogitKey {
  static constexpr bool kHasMass = false;
  static constexpr float kLowest = -INFINITY;
  static constexpr uint32_t kFirst = 0x00800000u, kEnd = 0xff800001u;  // above -infinity, above infinity
  static constexpr int kBits = 32;
  static SGL_HOST_DEVICE float clean(float value) { return value == value ? value + 0.0f : kLowest; }  // -0 is 0
  static SGL_HOST_DEVICE uint32_t key(float clean_value) {
    const uint32_t bits = bits_of_float(clean_value);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
  }
  // NaN where the key is none of a float's: below -infinity and above infinity.
  static SGL_HOST_DEVICE float value(uint32_t key) { return float_of_bits(key >> 31 ? key & 0x7fffffffu : ~key); }
};

inline constexpr float kUsualPeak = 1.0f;            // stands for all from kLowestUsualPeak to below 2
inline constexpr float kLowestUsualPeak = 0x1p-20f;  // with as many bits below it as a float has

// `peak` is the row's highest probability, at least kLowestPeak.
SGL_HOST_DEVICE float mass_scale(float peak, int64_t vocab) {
  int bits = 44;  // of 1 in a usual row: a mass below 2^45, and 2^18 of them below 2^63
  for (; vocab > 1 << 18; vocab = (vocab + 1) / 2) --bits;
  if (peak >= kLowestUsualPeak && peak < 2.0f) peak = kUsualPeak;
  const int exponent = bits + 127 - static_cast<int>(bits_of_float(peak) >> 23);
  return float_of_bits(static_cast<uint32_t>((exponent < 127 ? exponent : 127) + 127) << 23);
}

SGL_HOST_DEVICE uint64_t mass(float value, float scale) {
#ifdef __CUDA_ARCH__
  return __float2ull_rn(value * scale);
#else
  // Next to 1.5 * 2^52 a double's last bits count in ones: the sum rounds to nearest even, as above.
  constexpr double kShift = 6755399441055744.0;
  const double shifted = static_cast<double>(value * scale) + kShift;
  uint64_t bits, shift_bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  std::memcpy(&shift_bits, &kShift, sizeof(shift_bits));
  return bits - shift_bits;
#endif
}

// The least integer mass that is a share p < 1 of `total`, and at least 1.
SGL_HOST_DEVICE uint64_t mass_share(float p, uint64_t total) {
  const double share = ceil(static_cast<double>(p) * static_cast<double>(total));
  return share >= 1.0 ? static_cast<uint64_t>(share) : 1;
}

// A number of values, and their mass. A row has less than 2^31 values.
struct Tally {
  uint32_t count = 0;
  uint64_t mass = 0;
};

SGL_HOST_DEVICE Tally operator+(const Tally& a, const Tally& b) { return {a.count + b.count, a.mass + b.mass}; }
SGL_HOST_DEVICE Tally operator-(const Tally& a, const Tally& b) { return {a.count - b.count, a.mass - b.mass}; }

// Where a prefix of a row's values, in the order (value descending, place ascending), ends: at the first value with
// which it has that count or that mass.
struct Goal {
  static constexpr uint32_t kNoCount = ~0u;
  static constexpr uint64_t kNoMass = ~0ull;
  uint32_t count = kNoCount;
  uint64_t mass = kNoMass;

  SGL_HOST_DEVICE bool reached(const Tally& tally) const { return tally.count >= count || tally.mass >= mass; }
};

// The result of a search for it.
struct Cut {
  bool found = false;  // else the goal lies beyond the last key, and the prefix is the whole row
  uint32_t key = 0;    // of the prefix's last value, else kFirst
  Tally above;         // values of higher keys (all values searched, if it was not found)
  Tally equal;         // values of that key in the row

  // How many of the equals are in the prefix.
  SGL_HOST_DEVICE uint32_t kept_equals(const Goal& goal) const {
    if (equal.count == 1) return 1;  // without divisions
    uint64_t kept = equal.count;
    if (goal.count != Goal::kNoCount && goal.count - above.count < kept) kept = goal.count - above.count;
    if (goal.mass != Goal::kNoMass && equal.mass > 0) {
      const uint64_t each = equal.mass / equal.count, by_mass = (goal.mass - above.mass + each - 1) / each;
      if (by_mass < kept) kept = by_mass;
    }
    return static_cast<uint32_t>(kept);
  }
  SGL_HOST_DEVICE uint64_t prefix_mass(const Goal& goal) const {
    if (!found) return above.mass;
    const uint32_t kept = kept_equals(goal);
    return above.mass + (kept == equal.count ? equal.mass : equal.mass / equal.count * kept);
  }
};

// The tokens that a filter keeps: the values of higher keys, and those of that key up to the place `last`.
struct Kept {
  uint32_t key = 0;
  uint32_t last = ~0u;

  SGL_HOST_DEVICE bool has(uint32_t a_key, uint32_t place) const {
    return (a_key > key) | ((a_key == key) & (place <= last));  // without branches
  }
};

}  // namespace sgl_kernel
