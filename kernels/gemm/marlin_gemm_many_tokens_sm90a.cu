// gptq_marlin_gemm of many tokens on Hopper: what the kernel takes, and in which tiles.
#include "kernels/base/launch.h"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kWarpgroupColumns = 64, kStageK = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A model of a product's time: where the blocks at once (of a cluster that shares K: the clusters) take w turns at the
// tiles, each of s stages of 64 along K, w * (s * stage_us + end_us); a split adds kSplitUs, kSplitBlockUs a block of
// the cluster and kSplitTokenUs a token of the tile. The figures are fitted to the times on an H200 (2026-11-23) of
// products with uint4b8 and with uint8b128, bf16 and groups of 128; M from 64 to 4096, the N and K of Qwen3-VL-235B and
// DeepSeek-V3. What the model chooses took 0.4% longer than the best choice, in the mean.
struct TileTime {
  float stage_us, end_us;
};
struct TileTimes {
  TileTime of_4_bits, of_8_bits;
};
constexpr TileTimes kTimes[kNumTokenTiles] = {
    {{0.269f, 2.1f}, {0.293f, 2.3f}}, {{0.341f, 1.9f}, {0.384f, 2.0f}}, {{0.414f, 1.6f}, {0.454f, 1.5f}},
    {{0.450f, 2.0f}, {0.458f, 2.2f}}, {{0.531f, 2.0f}, {0.544f, 2.0f}}, {{0.652f, 2.1f}, {0.638f, 2.9f}},
    {{0.340f, 2.4f}, {0.416f, 2.4f}}, {{0.425f, 2.8f}, {0.464f, 2.7f}}, {{0.489f, 3.1f}, {0.552f, 3.1f}},
    {{0.589f, 3.0f}, {0.608f, 3.4f}},
};
constexpr float kSplitUs = 1.02f, kSplitBlockUs = 0.40f, kSplitTokenUs = 0.0071f;

// Clusters of 1, 2, … blocks that an H200 holds at once: each lies within a part of the GPU, and what is left over of
// the parts stays idle.
constexpr int kModelSms = 132, kClustersAtOnce[kMostSplits] = {132, 66, 39, 30, 22, 17, 15, 15};

// Whether the blocks of a cluster can share a tile out, in 16s of its tokens: what a block stores fits its panels.
constexpr bool split_fits(int tokens, int splits) {
  const int sixteens = tokens / 16;
  return splits == 1 || (splits <= sixteens && (sixteens + splits - 1) / splits * 16 <= 2 * token_panel(tokens));
}

// What takes the least time.
TokenTileChoice choose_tile(const MarlinGemmParams& params) {
  const int64_t stages = params.k / kStageK;
  TokenTileChoice best = {};
  float best_us = 0.0f;
  for (int i = kNumTokenTiles - 1; i >= 0; --i) {
    const TokenTile& tile = kTokenTiles[i];
    const TileTime& time = marlin_bits(params.type) == 4 ? kTimes[i].of_4_bits : kTimes[i].of_8_bits;
    const int64_t tiles = ceil_div(params.m, tile.tokens) * ceil_div(params.n, tile.warpgroups * kWarpgroupColumns);
    for (int splits = 1; splits <= kMostSplits && splits <= stages; ++splits) {
      const int64_t at_once = kClustersAtOnce[splits - 1] * num_sms() / kModelSms;
      if (!split_fits(tile.tokens, splits) || (splits > 1 && tiles > at_once)) continue;
      const float split_us = splits == 1 ? 0.0f
                                         : kSplitUs + kSplitBlockUs * static_cast<float>(splits) +
                                               kSplitTokenUs * static_cast<float>(tile.tokens);
      const float us = static_cast<float>(ceil_div(tiles, at_once)) *
                           (static_cast<float>(ceil_div(stages, splits)) * time.stage_us + time.end_us) +
                       split_us;
      if (best_us == 0.0f || us < best_us) {
        best = {i, splits};
        best_us = us;
      }
    }
  }
  return best;
}

}  // namespace

bool marlin_many_tokens_takes(const MarlinGemmParams& params) {
  constexpr uintptr_t kAlignment = 16;  // of the copy engine
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  const bool whole_groups =
      params.group_size > 0 && (params.group_size % kStageK == 0 || kStageK % params.group_size == 0);
  const void* const a = params.gathered != nullptr ? params.gathered : params.a;
  return params.groups == nullptr && !params.zeros_are_float && params.k > 0 && params.k % kStageK == 0 &&
         whole_groups && reinterpret_cast<uintptr_t>(params.zeros) % kAlignment == 0 &&
         matrix_map_fits(a, params.m, params.k, params.a_stride * 2) &&
         matrix_map_fits(params.weight, params.k, params.n, params.n) &&
         matrix_map_fits(params.result, params.m, params.n, params.n * 2) &&
         ceil_div(params.m, kTokenTiles[0].tokens) * ceil_div(params.n, kWarpgroupColumns) <= kMostTiles;
}

Status multiply_marlin_many_tokens(const MarlinGemmParams& params, Stream stream) {
  const TokenTileChoice choice = choose_tile(params);
  switch (params.type) {
    case MarlinType::kU4:
    case MarlinType::kU4B8:
      return marlin_many_tokens_int4(params, choice, stream);
    case MarlinType::kU8:
    case MarlinType::kU8B128:
      return marlin_many_tokens_int8(params, choice, stream);
    case MarlinType::kE4M3:
      return marlin_many_tokens_e4m3(params, choice, stream);
    default:
      return marlin_many_tokens_e2m1(params, choice, stream);
  }
}

}  // namespace sgl_kernel::SGL_TARGET
