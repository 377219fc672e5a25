// Which tile many_tokens_mm_sm90a.cuh takes for a product, by its sizes.
#pragma once

#include <cstdint>

#include "kernels/base/launch.h"
#include "kernels/device/cluster_sm90.cuh"

namespace sgl_kernel::SGL_TARGET::many_tokens_mm {

inline constexpr int kWarpgroupColumns = 64;  // rows of the instruction: operands are swapped

constexpr int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// So many warpgroups with 64 columns of the result each, by so many tokens.
struct TokenTile {
  int warpgroups, tokens;
};

// A model of a product's time: where the blocks at once (of a cluster that shares K: the clusters) take w turns at the
// tiles, each of s stages, w * (s * stage_us + end_us); a split adds kSplitUs, kSplitBlockUs a block of the cluster and
// kSplitTokenUs a token of the tile.
struct TileTime {
  float stage_us, end_us;
};
inline constexpr float kSplitUs = 0.37f, kSplitBlockUs = 0.40f, kSplitTokenUs = 0.0071f;

inline constexpr int kMostSplits = kMostClusterBlocks;  // of K

inline constexpr int kModelSms = 132;  // of the H200 that kSpreadClustersAtOnce is of

// Tokens of a box of the result: a divisor of a tile's. Two such boxes are on their way to memory at a time.
constexpr int token_panel(int tokens) {
  for (int panel : {64, 48, 32}) {
    if (tokens % panel == 0) return panel;
  }
  return 16;
}

// Whether the blocks of a cluster can share a tile out, in 16s of its tokens: what a block stores fits its panels, and
// the sums that it gets, in 4 bytes each, what the ring of every tile has.
inline constexpr int kSplitBytes = 144 * 1024;
constexpr bool split_fits(const TokenTile& tile, int splits) {
  const int sixteens = tile.tokens / 16, tokens = ceil_div(sixteens, splits) * 16;  // of a block
  return splits == 1 || (splits <= sixteens && tokens <= 2 * token_panel(tile.tokens) &&
                         splits * tokens * tile.warpgroups * kWarpgroupColumns * 4 <= kSplitBytes);
}

struct TokenTileChoice {
  int tile;    // an index of the format's tiles
  int splits;  // of K
};

// What takes the least time. K is `units` of stages_together stages each, which no split parts.
template <int kTiles>
TokenTileChoice choose_tile(int64_t m, int64_t n, int units, int stages_together, const TokenTile (&tiles)[kTiles],
                            const TileTime (&times)[kTiles]) {
  TokenTileChoice best = {};
  float best_us = 0.0f;
  for (int i = kTiles - 1; i >= 0; --i) {
    const TokenTile& tile = tiles[i];
    const int64_t count = int64_t{ceil_div(m, tile.tokens)} * ceil_div(n, tile.warpgroups * kWarpgroupColumns);
    for (int splits = 1; splits <= kMostSplits && splits <= units; ++splits) {
      const int64_t at_once = kSpreadClustersAtOnce[splits - 1] * num_sms() / kModelSms;
      if (!split_fits(tile, splits) || (splits > 1 && count > at_once)) continue;
      const float split_us = splits == 1 ? 0.0f
                                         : kSplitUs + kSplitBlockUs * static_cast<float>(splits) +
                                               kSplitTokenUs * static_cast<float>(tile.tokens);
      const float stages = static_cast<float>(ceil_div(units, splits) * stages_together);
      const float us =
          static_cast<float>(ceil_div(count, at_once)) * (stages * times[i].stage_us + times[i].end_us) + split_us;
      if (best_us == 0.0f || us < best_us) {
        best = {i, splits};
        best_us = us;
      }
    }
  }
  return best;
}

}  // namespace sgl_kernel::SGL_TARGET::many_tokens_mm
