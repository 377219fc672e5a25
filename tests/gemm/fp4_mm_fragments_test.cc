// The product of 16 rows and 16 columns as the NVFP4 matrix instruction makes it from the fragments that a warp loads:
// ldmatrix and the instruction are done here by the tables of PTX ISA 9.0, for every lane.
#include "kernels/gemm/fp4_mm_fragments.h"

#include <cstdint>
#include <random>

#include "kernels/base/float_types.h"
#include "tests/base/expect.h"

namespace sgl_kernel {
namespace {

constexpr int kLanes = 32, kRows = 16, kK = 64, kRowBytes = kK / 2, kPitch = kRowBytes + 16;
constexpr int kFirstRow = 48;  // of the tile of scales: some of its rows whose bytes are not at its start

struct Operand {
  uint8_t values[kRows][kPitch];
  uint8_t scales[kScaleTileBytes];
};

double value_of(int code) {
  constexpr double kMagnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code >= 8 ? -kMagnitudes[code - 8] : kMagnitudes[code];
}

double scale_of(uint32_t word, int block) {
  Float8E4M3 scale;
  scale.bits = static_cast<uint8_t>(word >> (8 * block));
  return static_cast<double>(static_cast<float>(scale));
}

uint32_t load_word(const uint8_t* bytes) {
  return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | uint32_t{bytes[3]} << 24;
}

// A number by the description of the format, with the scales of blocks behind `blocks` left out.
double number(const Operand& operand, int row, int l, int blocks) {
  if (l / kFp4Block >= blocks) return 0;
  const int code = operand.values[row][l / 2] >> (l % 2 * 4) & 15;
  return value_of(code) * scale_of(operand.scales[scale_in_tile(kFirstRow + row) + l / kFp4Block], 0);
}

// ldmatrix.x4: lane i % 8 + 8 * t points at row i % 8 of tile t, of which lane 4 * row + j gets the word j.
void load_matrices(uint32_t (&tiles)[kLanes][4], const Operand& operand, Fp4Place (*place)(int lane)) {
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int tile = 0; tile < 4; ++tile) {
      const Fp4Place from = place(8 * tile + lane / 4);
      EXPECT(from.byte % 16 == 0 && from.byte + 16 <= kRowBytes && from.row < kRows);
      tiles[lane][tile] = load_word(&operand.values[from.row][from.byte + 4 * (lane % 4)]);
    }
  }
}

void load_scales(uint32_t (&scales)[kLanes], const Operand& operand, int first, int (*row)(int lane), int blocks) {
  for (int lane = 0; lane < kLanes; ++lane) {
    scales[lane] = load_word(&operand.scales[scale_in_tile(kFirstRow + first + row(lane))]) & fp4_scale_mask(blocks);
  }
}

// The lane and register that hold value l of a row of A, or of a column of B; the value is the one at l % 8.
int lane_of(int row, int l) { return row % 8 * 4 + l % 32 / 8; }
int register_of_a(int row, int l) { return l / 32 * 2 + row / 8; }
int register_of_b(int l) { return l / 32; }

double instruction(const uint32_t (&a)[kLanes][4], const uint32_t (&scales_a)[kLanes], const uint32_t (&b)[kLanes][4],
                   int first_b, const uint32_t (&scales_b)[kLanes], int row, int column) {
  const uint32_t row_scales = scales_a[row % 8 * 4 + row / 8], column_scales = scales_b[column * 4];
  double sum = 0;
  for (int l = 0; l < kK; ++l) {
    const uint32_t left = a[lane_of(row, l)][register_of_a(row, l)] >> (l % 8 * 4) & 15;
    const uint32_t right = b[lane_of(column, l)][first_b + register_of_b(l)] >> (l % 8 * 4) & 15;
    sum +=
        value_of(left) * scale_of(row_scales, l / kFp4Block) * value_of(right) * scale_of(column_scales, l / kFp4Block);
  }
  return sum;
}

void test_products(int blocks) {
  std::mt19937 random(blocks);
  Operand left, right;
  for (Operand* operand : {&left, &right}) {
    for (auto& row : operand->values) {
      for (uint8_t& byte : row) byte = static_cast<uint8_t>(random());
    }
    for (uint8_t& scale : operand->scales) scale = random() % 0x7f;  // all but NaN
    // The kernel has zeros behind the end of K, and any scales.
    for (auto& row : operand->values) {
      for (int byte = blocks * kFp4Block / 2; byte < kRowBytes; ++byte) row[byte] = 0;
    }
    for (int row = 0; row < kScaleTileRows; ++row) {
      for (int block = blocks; block < kScaleTileColumns; ++block) operand->scales[scale_in_tile(row) + block] = 0x7f;
    }
  }
  uint32_t a[kLanes][4], b[kLanes][4], scales_a[kLanes], scales_b[kLanes];
  load_matrices(a, left, fp4_left_place);
  load_matrices(b, right, fp4_right_place);
  load_scales(scales_a, left, 0, fp4_left_scale_row, blocks);
  for (int next = 0; next < 2; ++next) {
    load_scales(scales_b, right, 8 * next, fp4_right_scale_column, blocks);
    for (int row = 0; row < kRows; ++row) {
      for (int column = 0; column < 8; ++column) {
        double expected = 0;
        for (int l = 0; l < kK; ++l) {
          expected += number(left, row, l, blocks) * number(right, 8 * next + column, l, blocks);
        }
        EXPECT_EQ(instruction(a, scales_a, b, 2 * next, scales_b, row, column), expected);
      }
    }
  }
}

}  // namespace
}  // namespace sgl_kernel

int main() {
  for (int blocks = 0; blocks <= sgl_kernel::kScaleTileColumns; ++blocks) sgl_kernel::test_products(blocks);
  return sgl_kernel::test::result();
}
