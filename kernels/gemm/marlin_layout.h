// Marlin's weights, on the host and on the device: which element lies where.
//
// A weight [K, N] is cut into tiles of 16 x 64, row by row of tiles; a tile is 128 words of 4-bit or 256 of 8-bit
// numbers. Lane l of a warp finds its share in 4 (or 8) words from word 4l (8l) on: for each 16 columns of the tile the
// operand B of two mma.m16n8k16, that is rows {0, 1, 8, 9} + 2 (l % 4) of the columns l / 4 and l / 4 + 8. Within a
// word the numbers are so ordered that a mask yields pairs of neighbouring rows, 16 bits apart.
#pragma once

#include <cstdint>

namespace sgl_kernel {

inline constexpr int kMarlinTileK = 16, kMarlinTileN = 64;

struct MarlinPosition {
  int k, n;  // in the tile
};

// Of the number that is the `place`th, from the lowest bits on, of a tile's word `word`.
constexpr MarlinPosition marlin_position(int num_bits, int word, int place) {
  constexpr int kRows[4] = {0, 1, 8, 9};
  const int words_per_lane = num_bits;  // 4 or 8: 32 numbers of num_bits bits
  const int lane = word / words_per_lane, of_lane = word % words_per_lane;
  int row = 0, column = lane / 4;
  if (num_bits == 4) {
    // Places 0 to 3 hold the first rows of four pairs, 4 to 7 the second ones.
    constexpr int kNumber[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    row = kRows[kNumber[place] % 4];
    column += 16 * of_lane + 8 * (kNumber[place] / 4);
  } else {
    constexpr int kNumber[4] = {0, 2, 1, 3};
    row = kRows[kNumber[place]];
    column += 8 * of_lane;
  }
  return {2 * (lane % 4) + row, column};
}

// The columns of a group's scales, and of its zero points, are permuted within each 64: position p holds the column
//   p / 8 + 8 (p % 8)                                      where there are several groups
//   32 (p / 32) + 2 (p % 32 / 8) + 8 (p % 8 / 2) + p % 2   where there is one
// and this is the inverse.
constexpr int marlin_scale_place(int column, bool many_groups) {
  if (many_groups) return 8 * (column % 8) + column / 8;
  return column / 32 * 32 + 8 * (column % 8 / 2) + 2 * (column % 32 / 8) + column % 2;
}

// A word of packed zero points holds those of consecutive places (see above), reordered once more: the bit at which the
// zero point of place p % (32 / num_bits) begins.
constexpr int marlin_zero_bit(int num_bits, int place) {
  if (num_bits == 4) return 4 * (place % 2 * 4 + place / 2);
  return 8 * (place % 2 * 2 + place / 2);
}

}  // namespace sgl_kernel
