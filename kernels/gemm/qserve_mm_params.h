// What the public functions of qserve_mm.h hand to the targets, checked; and QServe's layout.
#pragma once

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

inline constexpr int kQserveTile = 32;  // rows, and numbers along K, of a tile of weights
inline constexpr int kQserveTileBytes = kQserveTile * kQserveTile / 2;
inline constexpr int kQserveGroup = 128;  // numbers along K that share a scale

struct QserveMmParams {
  const char* operator_name;
  int64_t m, n, k;
  const int8_t* input;  // [m, k], dense rows
  int64_t input_stride;
  const uint8_t* weights;     // [n / 32, k / 32] tiles
  const void* row_scales;     // [m] f16
  const void* column_scales;  // [n] f16
  bool grouped;
  // With groups; else null.
  const uint8_t* group_scales;  // [k / 128, n], permuted
  const uint8_t* group_zeros;   // "
  // Without groups; else null.
  const void* row_sums;      // [m] f16
  const void* column_zeros;  // [n] f16
  void* output;              // [m, n] f16, dense rows
  int64_t output_stride;

  // The byte that holds the weight of a row and of k, in the low bits where the row is in the first half of its tile.
  constexpr int64_t weight_byte(int64_t row, int64_t at) const {
    const int64_t tile = row / kQserveTile * (k / kQserveTile) + at / kQserveTile;
    return tile * kQserveTileBytes + row % 8 * 64 + at % 16 / 4 * 16 + at % 32 / 16 * 8 + row % 16 / 8 * 4 + at % 4;
  }
  // Where group_scales and group_zeros have those of a row.
  constexpr int64_t group_at(int64_t row, int64_t group) const {
    return group * n + row / kQserveTile * kQserveTile + row % 8 * 4 + row % kQserveTile / 8;
  }
};

Status qserve_mm(const QserveMmParams& params, Stream stream);

}  // namespace sgl_kernel
