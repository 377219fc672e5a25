// gptq_marlin_gemm of many tokens on Hopper: what the kernel takes, and in which tiles.
#include "kernels/base/launch.h"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kColumns = 128, kStageK = 64;  // of a tile; of a stage

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The index of the tile that takes the least time.
int choose_tile(const MarlinGemmParams& params) {
  const int64_t stages = params.k / kStageK, column_tiles = ceil_div(params.n, kColumns);
  int best = 0;
  float best_us = 0.0f;
  for (int i = kNumTokenTiles - 1; i >= 0; --i) {
    const TokenTile& tile = kTokenTiles[i];
    const int64_t waves = ceil_div(ceil_div(params.m, tile.tokens) * column_tiles, num_sms());
    const float us = static_cast<float>(waves) * (static_cast<float>(stages) * tile.stage_us + tile.end_us);
    if (best_us == 0.0f || us < best_us) {
      best = i;
      best_us = us;
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
  const int tile = choose_tile(params);
  switch (params.type) {
    case MarlinType::kU4:
    case MarlinType::kU4B8:
      return marlin_many_tokens_int4(params, tile, stream);
    case MarlinType::kU8:
    case MarlinType::kU8B128:
      return marlin_many_tokens_int8(params, tile, stream);
    case MarlinType::kE4M3:
      return marlin_many_tokens_e4m3(params, tile, stream);
    default:
      return marlin_many_tokens_e2m1(params, tile, stream);
  }
}

}  // namespace sgl_kernel::SGL_TARGET
