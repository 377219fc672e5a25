// Into how many parts the keys are split, from the shapes alone.
#include <algorithm>
#include <cmath>

#include "kernels/attention/flash_attention.h"
#include "kernels/attention/flash_attention_params.h"

namespace sgl_kernel {
namespace {

constexpr int64_t kBlocksPerSm = 2;  // of few_packed_rows(), and of wide values

// What a call of few_packed_rows() takes, in the time in which a multiprocessor's share of the memory bandwidth brings
// one tile of keys. Blocks come in waves; a wave takes as long as the memory needs for it, or as a block needs for its
// tiles if it were alone. The constants fit an H200's times.
double few_rows_cost(int64_t blocks, int64_t tiles, int64_t splits, int64_t num_sms, int64_t most_merged) {
  constexpr double kTileCost = 0.7;  // of a block alone
  constexpr double kMergeCost = 0.8, kCombineCost = 4.0, kPartialCost = 0.03, kWaveCost = 3.0;
  // Clusters of more than two blocks do not spread evenly: each lies within one part of the GPU.
  constexpr int64_t kMostEvenCluster = 2;
  constexpr double kUnevenShare = 1.6, kUnevenTile = 1.2;
  const int64_t partials = partials_of(splits, most_merged), merged = splits / partials;
  const int64_t tiles_each = (tiles + splits - 1) / splits;
  const bool even = merged <= kMostEvenCluster;
  const auto wave = [&](int64_t count) {
    const double share = static_cast<double>(count) / static_cast<double>(num_sms);
    return static_cast<double>(tiles_each) *
           std::max(share * (even ? 1.0 : kUnevenShare), std::ceil(share) * kTileCost * (even ? 1.0 : kUnevenTile));
  };
  const int64_t slots = kBlocksPerSm * num_sms, full = blocks * splits / slots, rest = blocks * splits % slots;
  double cost = static_cast<double>(full) * wave(slots) + (rest > 0 ? wave(rest) : 0.0);
  cost += kWaveCost * static_cast<double>(full - (rest > 0 ? 0 : 1));
  if (merged > 1) cost += kMergeCost;
  if (partials > 1) cost += kCombineCost + kPartialCost * static_cast<double>(partials);
  return cost;
}

int64_t splits_of_few_rows(int64_t blocks, int64_t tiles, int64_t num_sms, int64_t most_merged) {
  int64_t best = 1;
  double best_cost = few_rows_cost(blocks, tiles, 1, num_sms, most_merged);
  // Beyond one wave of blocks only those that leave no partial results can pay.
  const int64_t most = std::max(most_merged, kBlocksPerSm * num_sms / blocks);
  for (int64_t splits = 2; splits <= std::min({int64_t{kMaxSplits}, tiles, most}); ++splits) {
    const double cost = few_rows_cost(blocks, tiles, splits, num_sms, most_merged);
    if (cost < best_cost) {
      best_cost = cost;
      best = splits;
    }
  }
  return best;
}

// Just enough that all `slots` for a block are taken.
int64_t splits_of_many_rows(int64_t blocks, int64_t tiles, int64_t slots) {
  constexpr double kGoodShare = 0.9;  // of the slots' time: splitting further would cost more than it gives
  constexpr int64_t kLeastTiles = 8;  // of a split
  if (blocks >= slots) return 1;
  const int64_t most = std::min<int64_t>(kMaxSplits, (tiles + kLeastTiles - 1) / kLeastTiles);
  int64_t best = 1;
  double best_share = 0.0;
  for (int64_t splits = 1; splits <= most && best_share < kGoodShare; ++splits) {
    const int64_t tiles_each = (tiles + splits - 1) / splits;
    if ((tiles + tiles_each - 1) / tiles_each != splits) continue;
    const int64_t waves = (blocks * splits + slots - 1) / slots;
    const double share = static_cast<double>(blocks * splits) / static_cast<double>(waves * slots);
    if (share > best_share) {
      best_share = share;
      best = splits;
    }
  }
  return best;
}

}  // namespace

int64_t fwd_num_partials(int64_t num_splits, int64_t num_heads, int64_t num_heads_k, int64_t seqlen_q,
                         int64_t head_dim_v, bool has_q_v, int64_t most_merged) {
  if (num_splits <= 1 || num_splits > kMaxSplits || num_heads_k <= 0) return 1;
  const bool merges = merges_splits(seqlen_q, num_heads / num_heads_k, head_dim_v, has_q_v);
  return partials_of(num_splits, merges ? most_merged : 1);
}

int64_t fwd_num_splits(int64_t batch, int64_t num_heads, int64_t num_heads_k, int64_t seqlen_q, int64_t seqlen_k,
                       int64_t head_dim_v, bool has_q_v, bool is_fp8, int64_t window_left, int64_t window_right,
                       int64_t num_sms, int64_t most_merged) {
  // What is not in these ranges fwd() refuses: here it may only not overflow, or divide by 0.
  constexpr int64_t kMost = int64_t{1} << 31;
  for (int64_t size : {batch, num_heads, num_heads_k, seqlen_q, seqlen_k, num_sms}) {
    if (size <= 0 || size > kMost) return 1;
  }
  const int64_t group = num_heads / num_heads_k;
  if (group == 0) return 1;
  const bool wide = has_wide_values(head_dim_v, has_q_v), few = few_packed_rows(seqlen_q, group) && !wide;
  const int64_t tile_rows = wide ? 32 : few ? 16 : 128;
  if (window_left >= 0 && window_right >= 0) {
    seqlen_k = std::min(seqlen_k, std::min(window_left, kMost) + std::min(window_right, kMost) + seqlen_q);
  }
  const int64_t row_tiles = (seqlen_q * group + tile_rows - 1) / tile_rows;
  const int64_t blocks = std::min(std::min(batch * num_heads_k, kMost) * std::min(row_tiles, kMost), kMost);
  // A tile of twice as many keys of fp8 takes as long (reckoned by the bytes, not measured).
  const int64_t tile_keys = few && is_fp8 ? 2 * kSplitTile : kSplitTile;
  const int64_t tiles = (seqlen_k + tile_keys - 1) / tile_keys;
  return few ? splits_of_few_rows(blocks, tiles, num_sms, std::max<int64_t>(most_merged, 1))
             : splits_of_many_rows(blocks, tiles, wide ? kBlocksPerSm * num_sms : num_sms);
}

}  // namespace sgl_kernel
