// What the targets of awq_dequantize take: checked, and reduced to pointers and sizes.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

inline constexpr int kAwqPerWord = 8;

// The bit where element i of a word begins.
constexpr int awq_bit(int i) { return 4 * (i / 2) + 16 * (i % 2); }

struct AwqParams {
  DType dtype;              // of result and scales
  void* result;             // [num_rows, words_per_row * kAwqPerWord]
  const uint32_t* qweight;  // [num_rows, words_per_row]
  const void* scales;       // [num_groups, words_per_row * kAwqPerWord]
  const uint32_t* qzeros;   // [num_groups, words_per_row]
  int64_t num_rows;
  int64_t words_per_row;
  int64_t group_size;  // rows that share scales and zero points
  int64_t num_groups;
};

Status decode_awq(const AwqParams& params, Stream stream);

}  // namespace sgl_kernel
