// The entry of Hopper: which kernel takes a shape.
#include <algorithm>
#include <optional>

#include "kernels/base/launch.h"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/gemm/scaled_mm_portable.h"
#include "kernels/gemm/scaled_mm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kTileRows = 128, kBlockK = 128, kSplitColumns = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the copy engine and the stores of 16 bytes can take.
bool copy_engine_takes(const ScaledMmParams& params) {
  constexpr int kOutputBytes = 2;
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  return params.k > 0 && params.n % (16 / kOutputBytes) == 0 &&
         matrix_map_fits(params.a, params.m, params.k, params.a_stride) &&
         matrix_map_fits(params.b, params.n, params.k, params.b_stride) &&
         matrix_map_fits(params.output, params.m, params.n, params.output_stride * kOutputBytes) &&
         ceil_div(params.m, kTileRows) * ceil_div(params.n, kTileShapes[0].columns) <= kMostTiles;
}

// The kernel for few rows takes up to 64 of them, and up to 128 where K is long and the weights are so few columns that
// a second split would find free multiprocessors.
std::optional<SplitShape> choose_split(const ScaledMmParams& params, int num_sms) {
  constexpr int64_t kMostTokens = 64;  // of a tile; 128 were slower than the other kernel
  const int64_t column_tiles = ceil_div(params.n, kSplitColumns);
  const int64_t tiles = column_tiles * ceil_div(params.m, kMostTokens);
  constexpr int64_t kLongK = 32;  // blocks
  if (params.m > 2 * kMostTokens) return std::nullopt;
  if (params.m > kMostTokens && (tiles > num_sms / 2 || params.k < kLongK * kBlockK)) return std::nullopt;
  // A multiprocessor each is enough; more than 4 ranks wait for each other longer than they gain.
  constexpr int64_t kMostSplits = 4;
  // A few multiprocessors less than there are: clusters do not fit everywhere.
  const int64_t splits =
      std::clamp<int64_t>((num_sms - 4) / tiles, 1, std::min(kMostSplits, ceil_div(params.k, kBlockK)));
  return SplitShape{
      .tokens = params.m <= 16   ? 16
                : params.m <= 32 ? 32
                                 : 64,
      .splits = static_cast<int>(splits),
      // With 64 tokens, what the next kernel's blocks take from the second wave costs more than they gain.
      .pdl = params.m <= 32 || tiles <= num_sms};
}

// An index of kTileShapes.
int choose_tiles(const ScaledMmParams& params, int num_sms) {
  const int64_t row_tiles = ceil_div(params.m, kTileRows), blocks = ceil_div(params.k, kBlockK);
  const bool many = row_tiles * ceil_div(params.n, 128) >= kManyWaves * num_sms;
  int best = kNumTileShapes - 1;
  float best_us = 0.0f;
  for (int i = kNumTileShapes - 1; i >= 0; --i) {
    const TileShape& shape = kTileShapes[i];
    if (many && shape.teams == 1) continue;
    const int64_t waves = ceil_div(row_tiles * ceil_div(params.n, shape.columns), num_sms);
    const float us =
        shape.start_us + static_cast<float>(waves) * (static_cast<float>(blocks) * shape.block_us + shape.end_us);
    if (best_us == 0.0f || us < best_us) {
      best = i;
      best_us = us;
    }
  }
  return best;
}

}  // namespace

Status scaled_mm(const ScaledMmParams& params, Stream stream) {
  if (params.blockwise || !copy_engine_takes(params)) return scaled_mm_portable(params, stream);
  const int sms = num_sms();
  const bool is_int8 = params.operand == DType::kI8;
  if (const std::optional<SplitShape> split = choose_split(params, sms)) {
    return is_int8 ? scaled_mm_split_int8(params, *split, stream) : scaled_mm_split_e4m3(params, *split, stream);
  }
  const int tiles = choose_tiles(params, sms);
  return is_int8 ? scaled_mm_tiles_int8(params, tiles, stream) : scaled_mm_tiles_e4m3(params, tiles, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
