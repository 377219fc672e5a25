// Half, BFloat16 and Float8E4M3, exhaustively: every value of theirs, and every place between two of them.
#include "kernels/base/float_types.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/base/expect.h"

namespace sgl_kernel {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class T>
T from_bits(int bits) {
  T value;
  value.bits = static_cast<uint16_t>(bits);
  return value;
}

// By the definition of the formats: a sign, kExponentBits of exponent, and the mantissa.
template <int kExponentBits>
double value_of(int bits) {
  constexpr int kMantissaBits = 15 - kExponentBits, kBias = (1 << (kExponentBits - 1)) - 1;
  const int exponent = (bits & 0x7fff) >> kMantissaBits, mantissa = bits & ((1 << kMantissaBits) - 1);
  const double magnitude = exponent == (1 << kExponentBits) - 1
                               ? (mantissa == 0 ? kInfinity : std::nan(""))
                               : std::ldexp(mantissa + (exponent > 0 ? 1 << kMantissaBits : 0),
                                            std::max(exponent, 1) - kBias - kMantissaBits);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

template <class T, int kExponentBits>
void test_every_value() {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float value = from_bits<T>(bits);
    const double expected = value_of<kExponentBits>(bits);
    if (std::isnan(expected)) {
      EXPECT(std::isnan(value));
      EXPECT(std::isnan(static_cast<float>(T(value))));
    } else {
      EXPECT_EQ(static_cast<double>(value), expected);
      EXPECT_EQ(T(value).bits, bits);
    }
  }
}

template <class T, int kExponentBits>
void test_every_rounding() {
  // Of two neighbours, the middle goes to the one whose last bit is 0, and one step of a float beside it to the nearer.
  // The neighbour of the largest finite value is what infinity stands for.
  const int infinity = ((1 << kExponentBits) - 1) << (15 - kExponentBits);
  for (int low = 0; low < infinity; ++low) {
    const int high = low + 1;
    const double above = high == infinity ? 2 * value_of<kExponentBits>(low) - value_of<kExponentBits>(low - 1)
                                          : value_of<kExponentBits>(high);
    const float middle = static_cast<float>((value_of<kExponentBits>(low) + above) / 2);
    if (std::isinf(middle)) continue;
    const int even = low % 2 == 0 ? low : high;
    EXPECT_EQ(T(middle).bits, even);
    EXPECT_EQ(T(-middle).bits, even | 0x8000);
    EXPECT_EQ(T(std::nextafter(middle, 0.0f)).bits, low);
    EXPECT_EQ(T(std::nextafter(middle, kInfinity)).bits, high);
  }
  EXPECT_EQ(T(kInfinity).bits, infinity);
  EXPECT_EQ(T(std::numeric_limits<float>::max()).bits, infinity);
  EXPECT_EQ(T(std::numeric_limits<float>::denorm_min()).bits, 0);
  EXPECT_EQ(T(-0.0f).bits, 0x8000);
  EXPECT(std::isnan(static_cast<float>(T(std::nanf("1")))));
}

Float8E4M3 e4m3_from_bits(int bits) {
  Float8E4M3 value;
  value.bits = static_cast<uint8_t>(bits);
  return value;
}

void test_e4m3() {
  constexpr int kLargest = 0x7e, kNan = 0x7f, kSign = 0x80;
  // Four bits of exponent, biased by 7, three of mantissa.
  const auto value_of = [](int bits) {
    return std::ldexp(bits % 8 + (bits >= 8 ? 8 : 0), std::max(bits / 8, 1) - 7 - 3);
  };
  for (int bits = 0; bits <= kLargest; ++bits) {
    const float value = e4m3_from_bits(bits);
    EXPECT_EQ(static_cast<double>(value), value_of(bits));
    EXPECT_EQ(static_cast<float>(e4m3_from_bits(bits | kSign)), -value);
    EXPECT_EQ(Float8E4M3(value).bits, bits);
    EXPECT_EQ(Float8E4M3(-value).bits, bits | kSign);
    if (bits == kLargest) break;
    const float middle = static_cast<float>((value_of(bits) + value_of(bits + 1)) / 2);
    EXPECT_EQ(Float8E4M3(middle).bits, bits + bits % 2);
    EXPECT_EQ(Float8E4M3(std::nextafter(middle, 0.0f)).bits, bits);
    EXPECT_EQ(Float8E4M3(std::nextafter(middle, kInfinity)).bits, bits + 1);
  }
  EXPECT_EQ(Float8E4M3(1000.0f).bits, kLargest);
  EXPECT_EQ(Float8E4M3(-kInfinity).bits, kLargest | kSign);
  EXPECT_EQ(Float8E4M3(std::nanf("1")).bits & kNan, kNan);
  EXPECT(std::isnan(static_cast<float>(e4m3_from_bits(kNan))));
  EXPECT(std::isnan(static_cast<float>(e4m3_from_bits(kNan | kSign))));
}

}  // namespace
}  // namespace sgl_kernel

int main() {
  using namespace sgl_kernel;
  test_every_value<Half, 5>();
  test_every_value<BFloat16, 8>();
  test_every_rounding<Half, 5>();
  test_every_rounding<BFloat16, 8>();
  test_e4m3();
  return test::result();
}
