// GPTQ's packed numbers, on the host and on the device.
//
// A unit is the fewest whole words: 16 numbers of 2 bits, 32 of 3 bits (3 words), 8 of 4 or 4 of 8 bits. In a
// checkpoint a unit is a string of bits, the first number lowest. gptq_shuffle reorders the numbers of a unit so that a
// mask yields pairs of neighbours, 16 bits apart: number i of a word is at bit num_bits * (i / 2) + 16 * (i % 2). Of 3
// bits, a word holds ten numbers so, and one bit each of the numbers 30 and 31, at bits 15 and 31. 8-bit numbers stay
// as they are.
#pragma once

#include <cstdint>

namespace sgl_kernel {

constexpr int gptq_unit_words(int num_bits) { return num_bits == 3 ? 3 : 1; }
constexpr int gptq_unit_numbers(int num_bits) { return 32 * gptq_unit_words(num_bits) / num_bits; }

// Number i of a unit whose words lie `stride` apart.
constexpr uint32_t gptq_number(int num_bits, const uint32_t* unit, int64_t stride, int i) {
  const uint32_t mask = (1u << num_bits) - 1;
  const int first_bit = i * num_bits, word = first_bit / 32, shift = first_bit % 32;
  uint32_t bits = unit[word * stride] >> shift;
  if (shift + num_bits > 32) bits |= unit[(word + 1) * stride] << (32 - shift);  // 3 bits across two words
  return bits & mask;
}

// Number i of a shuffled unit.
constexpr uint32_t gptq_shuffled_number(int num_bits, const uint32_t* unit, int64_t stride, int i) {
  if (num_bits == 8) return gptq_number(num_bits, unit, stride, i);
  const int half = 16 * (i % 2);
  if (num_bits == 3) {
    if (i >= 30) {
      uint32_t number = 0;
      for (int bit = 0; bit < 3; ++bit) number |= (unit[bit * stride] >> (15 + half) & 1) << bit;
      return number;
    }
    return unit[i / 10 * stride] >> (3 * (i % 10 / 2) + half) & 7;
  }
  return unit[0] >> (num_bits * (i / 2) + half) & ((1u << num_bits) - 1);
}

// Puts a number into a shuffled unit of zeros.
constexpr void gptq_put_shuffled(int num_bits, uint32_t* unit, int i, uint32_t number) {
  const int half = 16 * (i % 2);
  if (num_bits == 8) {
    unit[0] |= number << 8 * i;
  } else if (num_bits == 3 && i >= 30) {
    for (int bit = 0; bit < 3; ++bit) unit[bit] |= (number >> bit & 1) << (15 + half);
  } else if (num_bits == 3) {
    unit[i / 10] |= number << (3 * (i % 10 / 2) + half);
  } else {
    unit[0] |= number << (num_bits * (i / 2) + half);
  }
}

}  // namespace sgl_kernel
