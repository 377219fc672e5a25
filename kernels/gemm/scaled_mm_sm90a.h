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

  // Whether there is room for totals beside the sums: at most 128 of each of a team's 256 or 128 threads.
  constexpr bool promotes() const { return rows * columns <= 128 * 256 / teams; }
};

inline constexpr TileShape kTileShapes[] = {
    // One team: the less traffic, the wider. Widths that are close together let a wave of tiles end evenly.
    {1, 128, 48, 1.34f, 0.158f, 1.38f},
    {1, 128, 64, 1.56f, 0.190f, 1.30f},
    {1, 128, 80, 2.29f, 0.218f, 1.20f},
    {1, 128, 96, 1.87f, 0.272f, 1.13f},
    {1, 128, 112, 1.80f, 0.306f, 1.57f},
    {1, 128, 128, 1.73f, 0.348f, 1.22f},
    {1, 128, 144, 1.39f, 0.393f, 1.76f},
    {1, 128, 176, 0.93f, 0.468f, 2.23f},
    {1, 128, 192, 2.68f, 0.500f, 1.73f},
    {1, 128, 224, 3.26f, 0.600f, 1.87f},
    {1, 128, 256, 2.45f, 0.682f, 2.01f},
    // Two teams: the ends of tiles are hidden, which pays where K is short or waves are many.
    {2, 64, 64, 2.50f, 0.139f, 0.28f},  // 256 x 2112 x 7168 in one wave takes 2% less than by tiles of 64 x 96
    {2, 64, 96, 2.56f, 0.150f, 0.28f},
    {2, 64, 128, 2.43f, 0.208f, 0.28f},
    {2, 128, 96, 2.91f, 0.265f, 0.52f},
    {2, 128, 192, 2.70f, 0.500f, 0.60f},
    {2, 128, 128, 2.70f, 0.349f, 0.50f},
};
// From so many waves of tiles of kManyRows x kManyColumns on, power is the limit rather than the last wave: then only
// shapes at least as large as kLeastArea, which move fewer bytes.
inline constexpr int kManyWaves = 6, kManyRows = 128, kManyColumns = 128, kLeastArea = 128 * 96;
// What an element of a tile of two teams takes longer for each stretch of K that is promoted: nobody multiplies then.
inline constexpr float kPromotionUs = 0.8f / (128 * 128);

// The same for products with a scale for each block: one team, because two sets of sums fill the registers. Fitted to
// their times on an H200 (2026-11-23; M from 128 to 2048, the same N and K); the chosen ones are 0.1% above the least.
inline constexpr TileShape kBlockwiseShapes[] = {
    {1, 128, 32, 0.58f, 0.228f, 0.32f}, {1, 128, 48, 0.47f, 0.254f, 0.52f}, {1, 128, 64, 0.90f, 0.266f, 0.87f},
    {1, 128, 80, 0.89f, 0.303f, 0.98f}, {1, 128, 96, 0.49f, 0.335f, 1.37f}, {1, 128, 128, 0.62f, 0.363f, 1.82f},
    {1, 128, 192, 0.0f, 0.564f, 2.65f},
};

// The kernel for few rows (scaled_mm_few_rows_sm90a.cuh): columns of its tiles.
inline constexpr int kFewRowsColumns[] = {24, 32, 48, 56, 64, 72, 96, 112};
inline constexpr int kNumFewRowsColumns = sizeof(kFewRowsColumns) / sizeof(kFewRowsColumns[0]);
inline constexpr int kLongColumns = 72;  // of blockwise products of many tokens

// The instruction for int8 takes multiples of 16.
constexpr int few_rows_columns(int columns, bool is_int8) { return is_int8 ? (columns + 15) / 16 * 16 : columns; }

struct FewRowsShape {
  int tokens;   // of a tile: 16 or 64, or 128 unless blockwise
  int columns;  // an index of kFewRowsColumns
  int splits;   // of K
  int blocks;   // of a multiprocessor: 1 or 2; 2 with 16 tokens or blockwise, 1 with 128
};

// The kernel for batches of few rows with a short K, and what it takes of what the copy engine does.
bool scaled_mm_short_k_takes(const ScaledMmParams& params);
Status scaled_mm_short_k(const ScaledMmParams& params, Stream stream);

// Instantiations by operand.
Status scaled_mm_tiles_e4m3(const ScaledMmParams& params, int shape, Stream stream);
Status scaled_mm_tiles_int8(const ScaledMmParams& params, int shape, Stream stream);
Status scaled_mm_tiles_blockwise(const ScaledMmParams& params, int shape, Stream stream);
Status scaled_mm_few_rows_e4m3(const ScaledMmParams& params, const FewRowsShape& shape, Stream stream);
Status scaled_mm_few_rows_int8(const ScaledMmParams& params, const FewRowsShape& shape, Stream stream);
Status scaled_mm_few_rows_blockwise(const ScaledMmParams& params, const FewRowsShape& shape, Stream stream);

}  // namespace sgl_kernel::SGL_TARGET
