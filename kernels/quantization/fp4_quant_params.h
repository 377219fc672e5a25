// What the targets of the NVFP4 quantization take: checked, and reduced to pointers and sizes.
#pragma once

#include "kernels/base/fp4_layout.h"
#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

inline constexpr float kFp4Max = 6.0f;

struct Fp4QuantParams {
  const char* operator_name;
  DType dtype;  // of input
  bool fuse_silu_and_mul;
  const void* input;
  uint8_t* output;
  uint8_t* scales;
  const float* global_scales;    // [num_experts]
  const int32_t* offsets;        // [num_experts + 1]; null: num_groups is num_experts
  const int32_t* scale_offsets;  // [num_experts + 1]; null where offsets is
  const int32_t* mask;           // [num_groups]; null: all rows of a group
  int num_experts;
  int num_groups;         // of equally many rows; with offsets one, of all rows
  int num_rows;           // of a group
  int num_scale_rows;     // of a group: its rows and, unless there are offsets, what fills up a tile
  int num_blocks;         // of a row
  int padded_blocks;      // with those that only have a scale, 0: a multiple of kScaleTileColumns
  int64_t input_stride;   // between rows, in elements
  int64_t output_stride;  // "

  // Where the scale of a block lies, from the first one of its expert.
  constexpr int64_t scale_at(int64_t row, int block) const { return fp4_scale_at(row, block, padded_blocks); }
};

Status quantize_fp4(const Fp4QuantParams& params, Stream stream);

}  // namespace sgl_kernel
