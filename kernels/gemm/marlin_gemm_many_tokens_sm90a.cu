// gptq_marlin_gemm of many tokens on Hopper: what the kernel takes, and in which tiles.
#include "kernels/base/launch.h"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kColumns = 128, kStageK = 64;  // of a tile; of a stage

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether the blocks of a cluster can share a tile out: each stores 16 tokens or a multiple, as many as its panels
// hold.
constexpr bool split_fits(int tokens, int splits) { return tokens % (16 * splits) == 0 && tokens / splits <= 64; }

// What takes the least time.
TokenTileChoice choose_tile(const MarlinGemmParams& params) {
  const int64_t stages = params.k / kStageK, column_tiles = ceil_div(params.n, kColumns);
  TokenTileChoice best = {};
  float best_us = 0.0f;
  for (int i = kNumTokenTiles - 1; i >= 0; --i) {
    const TokenTile& tile = kTokenTiles[i];
    const int64_t tiles = ceil_div(params.m, tile.tokens) * column_tiles;
    for (int splits : {1, 2, 3, 4}) {
      if (splits > 1 && (!split_fits(tile.tokens, splits) || splits > stages)) continue;
      // Not all multiprocessors belong to a cluster of more than two.
      if (splits > 1 && tiles * splits > (splits > 2 ? num_sms() * 3 / 4 : num_sms())) continue;
      const float split_us = splits > 1 ? kSplitUs + kSplitTokenUs * static_cast<float>(tile.tokens * splits) : 0.0f;
      const float us = static_cast<float>(ceil_div(tiles, num_sms())) *
                           (static_cast<float>(ceil_div(stages, splits)) * tile.stage_us + tile.end_us) +
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
         ceil_div(params.m, kTokenTiles[0].tokens) * ceil_div(params.n, kColumns) <= kMostTiles;
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
