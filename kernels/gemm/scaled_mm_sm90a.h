// The Hopper kernels of scaled_mm and which of them takes a shape.
#pragma once

#include "kernels/gemm/scaled_mm_params.h"

namespace sgl_kernel::SGL_TARGET {

// A tile of the persistent kernel (scaled_mm_tiles_sm90a.cuh), and a model of its time: with t tiles on p
// multiprocessors and b blocks of 128 along K,
//   start_us + ceil(t / p) * (b * block_us + end_us)
// The figures are fitted to the times of e4m3 products on an H200 (2026-11-23; M from 64 to 8192, the N and K of
// Qwen3-VL-235B and DeepSeek-V3). Of these shapes' times, the ones that the model chooses are 1% above the least.
struct TileShape {
  int teams, rows, columns;
  float start_us, block_us, end_us;
};

inline constexpr TileShape kTileShapes[] = {
    // One team: the less traffic, the wider. Widths that are close together let a wave of tiles end evenly.
    {1, 128, 48, 0.12f, 0.226f, 0.97f},
    {1, 128, 64, 0.59f, 0.249f, 0.65f},
    {1, 128, 80, 0.06f, 0.260f, 1.62f},
    {1, 128, 96, 0.28f, 0.282f, 1.65f},
    {1, 128, 112, 0.0f, 0.309f, 2.44f},
    {1, 128, 128, 0.0f, 0.345f, 2.19f},
    {1, 128, 144, 0.0f, 0.383f, 2.96f},
    {1, 128, 192, 0.0f, 0.490f, 3.12f},
    {1, 128, 224, 0.0f, 0.564f, 3.83f},
    {1, 128, 256, 0.0f, 0.640f, 3.83f},
    // Two teams: the ends of tiles are hidden, which pays where K is short or waves are many.
    {2, 64, 128, 1.15f, 0.217f, 0.66f},
    {2, 128, 96, 1.56f, 0.276f, 0.96f},
    {2, 128, 128, 1.59f, 0.352f, 0.93f},
};
inline constexpr int kNumTileShapes = sizeof(kTileShapes) / sizeof(kTileShapes[0]);
// From so many waves of tiles of the last shape on, power is the limit rather than the last wave: then only shapes of
// its teams and rows.
inline constexpr int kManyWaves = 6;

// The same for products with a scale for each block: one team, because two sets of sums fill the registers. Fitted to
// their times on an H200 (2026-11-23; M from 128 to 2048, the same N and K); the chosen ones are 0.1% above the least.
inline constexpr TileShape kBlockwiseShapes[] = {
    {1, 128, 32, 0.58f, 0.228f, 0.32f}, {1, 128, 48, 0.47f, 0.254f, 0.52f}, {1, 128, 64, 0.90f, 0.266f, 0.87f},
    {1, 128, 80, 0.89f, 0.303f, 0.98f}, {1, 128, 96, 0.49f, 0.335f, 1.37f}, {1, 128, 128, 0.62f, 0.363f, 1.82f},
    {1, 128, 192, 0.0f, 0.564f, 2.65f},
};

// How the kernel for few rows (scaled_mm_split_sm90a.cuh) is set up.
struct SplitShape {
  int tokens;  // of a tile: 16, 32 or 64
  int splits;  // of K
  bool pdl;
};

// Instantiations by operand.
Status scaled_mm_tiles_e4m3(const ScaledMmParams& params, int shape, Stream stream);
Status scaled_mm_split_e4m3(const ScaledMmParams& params, const SplitShape& shape, Stream stream);
Status scaled_mm_tiles_int8(const ScaledMmParams& params, int shape, Stream stream);
Status scaled_mm_tiles_blockwise(const ScaledMmParams& params, int shape, Stream stream);
Status scaled_mm_split_blockwise(const ScaledMmParams& params, const SplitShape& shape, Stream stream);
Status scaled_mm_split_int8(const ScaledMmParams& params, const SplitShape& shape, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
