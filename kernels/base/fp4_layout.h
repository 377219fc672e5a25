// How NVFP4 matrices lie in memory: values e2m1, two a byte, the first in the low bits; an e4m3 scale for each 16
// neighbours of a row, in the order that tensor cores read: tiles of 128 rows by 4 scales, 512 bytes each, row after
// row of tiles. Sources: OCP Microscaling Formats 1.0 (E2M1); PTX ISA, tcgen05.mma scale factor layouts.
#pragma once

#include <cstdint>

namespace sgl_kernel {

inline constexpr int kFp4Block = 16;         // values of one scale
inline constexpr int kScaleTileRows = 128;   // of a tile of scales
inline constexpr int kScaleTileColumns = 4;  // "
inline constexpr int kScaleTileBytes = kScaleTileRows * kScaleTileColumns;

// Where in its tile the scale of a row is; those of the tile's other three blocks follow.
constexpr unsigned scale_in_tile(unsigned row_in_tile) { return row_in_tile % 32 * 16 + row_in_tile / 32 * 4; }

// Where the scale of a block of 16 lies. padded_blocks is the number of scales of a row, a multiple of 4.
// Unsigned: divisions are shifts.
constexpr int64_t fp4_scale_at(uint32_t row, uint32_t block, uint32_t padded_blocks) {
  const uint64_t tile_row = uint64_t{row / kScaleTileRows} * padded_blocks * kScaleTileRows;
  const uint64_t tile = uint64_t{block / kScaleTileColumns} * kScaleTileBytes;
  return tile_row + tile + scale_in_tile(row % kScaleTileRows) + block % kScaleTileColumns;
}

}  // namespace sgl_kernel
