// The work of one warp on the tensor cores: 8 rows of W by a slice of 256 elements by some tokens. It copies the rows'
// blocks to shared memory some slices ahead, decodes from there what each lane holds of an operand, and multiplies. The
// integer sums of a group of 32 become floats and are scaled at once, since every group has scales of its own.
#pragma once

#include "kernels/device/mma_int8.cuh"
#include "kernels/quantization/ggml_decode.cuh"
#include "kernels/quantization/ggml_mul_mat.cuh"
#include "kernels/quantization/ggml_stage.cuh"

namespace sgl_kernel::SGL_TARGET {

inline constexpr int kRowTileRows = 8;                        // the columns of a matrix instruction
inline constexpr int kSliceSize = kSliceGroups * kGroupSize;  // elements
// Bytes behind a row: the 8 rows that a matrix load reads at once are in different banks.
inline constexpr int kPad = 16;

// The bytes of a slice of a row.
template <class Format>
constexpr int kRunBytes = kSliceGroups / Format::kGroupsPerBlock * static_cast<int>(sizeof(typename Format::Block));

// What a warp has in shared memory. kStages: slices that it has copies of, or on their way.
template <class Format, int kStages>
struct alignas(16) WarpBuffers {
  uint8_t staged[kStages][kRowTileRows][staged_bytes(kRunBytes<Format>)];
  float scales[kSliceGroups][Format::kScales][kRowTileRows];
  float offsets[Format::kHasOffset ? kSliceGroups : 1][Format::kScales][kRowTileRows];
};

template <class Format>
struct RowTile {
  using Block = typename Format::Block;
  static constexpr int kRun = kRunBytes<Format>;
  using Staged = uint8_t[kRowTileRows][staged_bytes(kRun)];

  const uint8_t* first;  // row
  int64_t row_bytes;
  int num_rows;  // that there are of the 8
  bool inside;   // all 8 are rows of the matrix, and none is its first or last

  // The run of a slice of a row.
  __device__ __forceinline__ const uint8_t* run_of(int row, int slice) const {
    return first + row * row_bytes + slice * kRun;
  }

  // Starts to copy a slice. The matrix is [begin, end).
  __device__ __forceinline__ void copy(Staged& staged, int slice, const uint8_t* begin, const uint8_t* end) const {
    const int lane = threadIdx.x % kWarpSize;
    const int64_t left = row_bytes - int64_t{slice} * kRun;
    const int bytes = left < kRun ? static_cast<int>(left) : kRun;
    constexpr int kPieces = sizeof(staged[0]) / kPiece;
    constexpr int kSteps = (kRowTileRows * kPieces + kWarpSize - 1) / kWarpSize;
    if (inside) {  // a row is longer than a piece: what lies around is of the matrix, too
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int row = (i * kWarpSize + lane) / kPieces, at = (i * kWarpSize + lane) % kPieces * kPiece;
        const uint8_t* run = run_of(row, slice);
        const int offset = staged_offset(run);
        if (row < kRowTileRows && at < offset + bytes) copy_async_16(&staged[row][at], run - offset + at);
      }
    } else {
#pragma unroll 1
      for (int row = 0; row < num_rows; ++row) stage_run_at_edge(staged[row], run_of(row, slice), bytes, begin, end);
    }
  }

  // Where a row's slice is in shared memory.
  __device__ __forceinline__ const Block* blocks_of(const Staged& staged, int row, int slice) const {
    return reinterpret_cast<const Block*>(staged[row] + staged_offset(run_of(row, slice)));
  }

  // The scales of a slice, for every lane to read. What was not copied gets a scale of 0, and is decoded, too, whatever
  // it is.
  template <int kStages>
  __device__ __forceinline__ void store_scales(WarpBuffers<Format, kStages>& buffers, int stage, int slice,
                                               int num_groups) const {
    const int lane = threadIdx.x % kWarpSize, group = lane % kSliceGroups;
#pragma unroll
    for (int row = lane / kSliceGroups; row < kRowTileRows; row += kWarpSize / kSliceGroups) {
      const bool present = row < num_rows && slice * kSliceGroups + group < num_groups;
      WeightGroup weights;
      Format::set_scales(blocks_of(buffers.staged[stage], row, slice)[group / Format::kGroupsPerBlock],
                         group % Format::kGroupsPerBlock, weights);
#pragma unroll
      for (int s = 0; s < Format::kScales; ++s) {
        buffers.scales[group][s][row] = present ? weights.scale[s] : 0.0f;
        if constexpr (Format::kHasOffset) buffers.offsets[group][s][row] = present ? weights.offset[s] : 0.0f;
      }
    }
  }
};

// sums += [tokens, rows], of each 16 tokens g and g + 8, of each 8 rows 2t and 2t + 1 for lane = 4 * g + t. `blocks`
// are those of row g, `activations` and `x_scales` ([kSliceGroups][kTokens]) those of the slice. Of the 16-token tiles
// the last ones may be left out. The order in which an element is added up depends on k alone.
template <class Format, int kTokens, int kRowTiles, int kStages>
__device__ __forceinline__ void add_slice(const typename Format::Block* const (&blocks)[kRowTiles],
                                          const WarpBuffers<Format, kStages>* buffers, const uint8_t* activations,
                                          int pitch, const ActivationScale* x_scales, int token_tiles,
                                          float (&sums)[kRowTiles][kTokens / 16][4]) {
  // Of the weights a lane holds bytes 4t .. 4t + 3 of both halves of row g's groups.
  const int lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
  const uint8_t* const x = activations + lane % 16 * pitch + lane / 16 * 16;
#pragma unroll
  for (int group = 0; group < kSliceGroups; ++group) {
    uint2 b[kRowTiles];
    RowScale<Format> rows[kRowTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      b[r] = Format::words(blocks[r][group / Format::kGroupsPerBlock], group % Format::kGroupsPerBlock, t);
#pragma unroll
      for (int s = 0; s < Format::kScales; ++s) {
        const float2 scale = *reinterpret_cast<const float2*>(&buffers[r].scales[group][s][2 * t]);
        rows[r][0].scale[s] = scale.x;
        rows[r][1].scale[s] = scale.y;
        if constexpr (Format::kHasOffset) {
          const float2 offset = *reinterpret_cast<const float2*>(&buffers[r].offsets[group][s][2 * t]);
          rows[r][0].offset[s] = offset.x;
          rows[r][1].offset[s] = offset.y;
        }
      }
#pragma unroll
      for (RowScale<Format>& row : rows[r]) row.set_base();
    }
#pragma unroll
    for (int m = 0; m < kTokens / 16; ++m) {
      if (m >= token_tiles) break;
      // Tiles: tokens 0..7, tokens 8..15, and both again 16 bytes further on.
      uint32_t a[4];
      load_matrices(a, x + m * 16 * pitch + group * kGroupSize);
      float x_scale[2], x_sums[2][2];  // of tokens g and g + 8
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const ActivationScale& scale = x_scales[group * kTokens + m * 16 + h * 8 + g];
        x_scale[h] = scale.d;
        sums_of<Format>(scale, x_sums[h]);
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        int dots[2][4];
        if constexpr (Format::kScales == 1) {
          mma_16x8x32(dots[0], a[0], a[1], a[2], a[3], b[r].x, b[r].y, kFloatBaseBits);
        } else {
          mma_16x8x16(dots[0], a[0], a[1], b[r].x, kFloatBaseBits);
          mma_16x8x16(dots[1], a[2], a[3], b[r].y, kFloatBaseBits);
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int dot1 = Format::kScales == 2 ? dots[1][c] : 0;
          const float value = scaled_sum<Format>(rows[r][c % 2], dots[0][c], dot1, x_sums[c / 2]);
          sums[r][m][c] = __fmaf_rn(x_scale[c / 2], value, sums[r][m][c]);
        }
      }
    }
  }
}

}  // namespace sgl_kernel::SGL_TARGET
