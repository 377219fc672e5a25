// What the targets of the repacking operators take, and how they make a word.
#pragma once

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"
#include "kernels/gemm/marlin_layout.h"

namespace sgl_kernel {

struct MarlinRepackParams {
  const char* operator_name;
  uint32_t* result;
  const uint32_t* weight;
  const int32_t* perm;  // [size_k], or null
  int64_t size_k, size_n;
  int num_bits;
  bool from_awq;
};

Status repack_for_marlin(const MarlinRepackParams& params, Stream stream);

// The number of row k and column n of the weight.
constexpr uint32_t number_at(const MarlinRepackParams& params, int64_t k, int64_t n) {
  const int bits = params.num_bits, per_word = 32 / bits;
  const uint32_t mask = (1u << bits) - 1;
  if (params.from_awq) {
    const int place = static_cast<int>(n % per_word);
    const uint32_t word = params.weight[k * (params.size_n / per_word) + n / per_word];
    return word >> marlin_zero_bit(bits, place) & mask;  // AWQ's order is that of the packed zero points
  }
  const int64_t row = params.perm == nullptr ? k : params.perm[k];
  return params.weight[row / per_word * params.size_n + n] >> (row % per_word * bits) & mask;
}

// The `index`th word of the result.
constexpr uint32_t marlin_word(const MarlinRepackParams& params, int64_t index) {
  const int words_per_tile = kMarlinTileK * kMarlinTileN * params.num_bits / 32;
  const int64_t tiles_per_row = params.size_n / kMarlinTileN, tile = index / words_per_tile;
  const int64_t first_k = tile / tiles_per_row * kMarlinTileK, first_n = tile % tiles_per_row * kMarlinTileN;
  uint32_t word = 0;
  for (int place = 0; place < 32 / params.num_bits; ++place) {
    const MarlinPosition at = marlin_position(params.num_bits, static_cast<int>(index % words_per_tile), place);
    word |= number_at(params, first_k + at.k, first_n + at.n) << place * params.num_bits;
  }
  return word;
}

}  // namespace sgl_kernel
