// How a product with a weight of a few bits is shared out over a GPU: tiles of the output, and splits of K whose
// partial sums meet in the workspace. By the sizes alone, so that the order of additions is the same on every GPU.
#pragma once

#include <cstdint>

namespace sgl_kernel {

// The columns of a block's tile, and its rows for few tokens and for many.
inline constexpr int kMixedTileColumns = 128, kMixedFewRows = 16, kMixedManyRows = 32;

// Splits of K so that blocks fill an H200's 132 multiprocessors twice, in as few whole waves as possible. In units of
// 16 along K: a block costs its share of K, kStart to fill its pipeline, and each split kMerge to write and add.
constexpr int mixed_num_splits(int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kBlocksAtOnce = 2 * 132, kStart = 12, kMerge = 2, kLeast = 16;
  constexpr int kMost = 16;
  const int64_t rows = m <= kMixedFewRows ? kMixedFewRows : kMixedManyRows;
  const int64_t tiles = ((m + rows - 1) / rows) * ((n + kMixedTileColumns - 1) / kMixedTileColumns), depth = k / 16;
  int best = 1;
  int64_t least = INT64_MAX;
  for (int splits = 1; splits <= kMost && (splits == 1 || depth / splits >= kLeast); ++splits) {
    const int64_t waves = (tiles * splits + kBlocksAtOnce - 1) / kBlocksAtOnce;
    const int64_t cost = waves * ((depth + splits - 1) / splits + kStart) + (splits - 1) * kMerge;
    if (cost < least) {
      least = cost;
      best = splits;
    }
  }
  return best;
}

// The workspace: the gathered columns of a 16-bit matrix [m, k], if any, then the partial sums.
constexpr int64_t mixed_gathered_bytes(int64_t m, int64_t k, bool gathers) {
  return gathers ? (m * k * 2 + 15) / 16 * 16 : 0;
}
constexpr int64_t mixed_workspace_bytes(int64_t m, int64_t n, int64_t k, bool gathers) {
  const int64_t splits = mixed_num_splits(m, n, k);
  return mixed_gathered_bytes(m, k, gathers) + (splits > 1 ? splits * m * n * 4 : 0);
}

}  // namespace sgl_kernel
