// What the targets of the NVFP4 quantization take: checked, and reduced to pointers and sizes.
#pragma once

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

inline constexpr int kFp4Block = 16;         // values of one scale
inline constexpr int kScaleTileRows = 128;   // of a tile of scales
inline constexpr int kScaleTileColumns = 4;  // "
inline constexpr int kScaleTileBytes = kScaleTileRows * kScaleTileColumns;
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
  int64_t num_groups;      // of equally many rows; with offsets one, of all rows
  int64_t num_rows;        // of a group
  int64_t num_scale_rows;  // of a group: its rows and, unless there are offsets, what fills up a tile
  int64_t num_blocks;      // of a row
  int64_t padded_blocks;   // with those that only have a scale, 0: a multiple of kScaleTileColumns
  int64_t input_stride;    // between rows, in elements
  int64_t output_stride;   // "

  // Where the scale of a block lies, from the first one of its expert.
  constexpr int64_t scale_at(int64_t row, int64_t block) const {
    const int64_t tile = row / kScaleTileRows * (padded_blocks / kScaleTileColumns) + block / kScaleTileColumns;
    const int64_t in_tile = row % kScaleTileRows;
    return tile * kScaleTileBytes + in_tile % 32 * 16 + in_tile / 32 * 4 + block % kScaleTileColumns;
  }
};

Status quantize_fp4(const Fp4QuantParams& params, Stream stream);

}  // namespace sgl_kernel
