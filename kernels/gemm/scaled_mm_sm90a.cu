// The entry of Hopper: which kernel takes a shape.
#include <algorithm>
#include <optional>

#include "kernels/base/launch.h"
#include "kernels/device/matmul_sm90.cuh"
#include "kernels/gemm/scaled_mm_portable.h"
#include "kernels/gemm/scaled_mm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kLeastTileRows = 64, kLeastTileColumns = 32;  // of the persistent kernel
constexpr int kBlockK = 128, kSplitColumns = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the copy engine and the stores of 16 bytes can take.
bool copy_engine_takes(const ScaledMmParams& params) {
  constexpr int kOutputBytes = 2;
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  const auto distance_fits = [&](int64_t batch_bytes) {
    return params.batches == 1 || (batch_bytes > 0 && batch_bytes % 16 == 0 && batch_bytes < (int64_t{1} << 40));
  };
  return params.k > 0 && params.n % (16 / kOutputBytes) == 0 &&
         matrix_map_fits(params.a, params.m, params.k, params.a_stride) &&
         matrix_map_fits(params.b, params.n, params.k, params.b_stride) &&
         matrix_map_fits(params.output, params.m, params.n, params.output_stride * kOutputBytes) &&
         distance_fits(params.a_batch_stride) && distance_fits(params.b_batch_stride) &&
         distance_fits(params.output_batch_stride * kOutputBytes) && params.batches <= kMostTiles &&
         params.batches * ceil_div(params.m, kLeastTileRows) * ceil_div(params.n, kLeastTileColumns) <= kMostTiles;
}

// The kernel for few rows of e4m3 takes up to 64 of them, and up to 128 where K is long and there are so few columns
// that K can be split four times even so. Of its shapes the one whose blocks have the least to do, by a model fitted to
// times on an H200 (2026-11-23; the N and K of kTileShapes): those of its choices are 1% above the least.
std::optional<FewRowsShape> choose_few_rows(const ScaledMmParams& params, int num_sms) {
  constexpr float kColumnUs = 0.0033f, kBlockUs = 0.04f;      // of a block of K: a column of it, and itself
  constexpr float kExchangeUs = 0.7f, kSplitUs = 0.05f;       // of splitting at all, and of each further split
  constexpr int64_t kFew = 64, kMostSplits = 8, kLongK = 32;  // kLongK in blocks
  constexpr int kLeastLongSplits = 4, kPrefetched = 3;
  const int64_t k_blocks = ceil_div(params.k, kBlockK);
  const bool is_long = params.m > kFew;
  if (params.m > 2 * kFew || (is_long && k_blocks < kLongK)) return std::nullopt;
  const int tokens = params.m <= 16 ? 16 : is_long ? 128 : 64;
  std::optional<FewRowsShape> best;
  float best_us = 0.0f;
  for (int i = 0; i < kNumFewRowsColumns; ++i) {
    const int columns = kFewRowsColumns[i];
    if (is_long && columns != kLongColumns) continue;
    const int64_t tiles = ceil_div(params.n, columns);
    for (int splits = is_long ? kLeastLongSplits : 1; splits <= std::min(kMostSplits, k_blocks); ++splits) {
      const int64_t blocks = tiles * splits;
      // Clusters of more than two do not fill all of the chip's groups of multiprocessors.
      const bool one_each = blocks <= (splits > 2 ? num_sms * 10 / 11 : num_sms);
      // Two blocks a multiprocessor at a time, with 16 tokens: with more, the other kernel takes less time.
      if (!one_each && (tokens > 16 || splits > 1 || blocks > 2 * num_sms)) continue;
      const float us = static_cast<float>((one_each ? 1 : 2) * ceil_div(k_blocks, splits)) *
                           (static_cast<float>(columns) * kColumnUs + kBlockUs) +
                       (splits > 1 ? kExchangeUs + static_cast<float>(splits - 1) * kSplitUs : 0.0f);
      if (best.has_value() && us >= best_us) continue;
      // The next kernel's blocks only wait beside this one's where there is room for them.
      best = {.tokens = tokens, .columns = i, .splits = splits, .prefetched = one_each ? kPrefetched : 0};
      best_us = us;
    }
  }
  return best;
}

// The kernel for few rows of other products takes up to 64 of them, or 32 blockwise, because there tiles leave more
// time for the scales; and up to 128 where K is long and there are so few columns that K can be split even so.
std::optional<SplitShape> choose_split(const ScaledMmParams& params, int num_sms) {
  constexpr int64_t kMostTokens = 64;  // of a tile; 128 were slower than the other kernel
  constexpr int64_t kLongK = 32;       // blocks
  const int64_t few = params.blockwise ? kMostTokens / 2 : kMostTokens;
  const int64_t tiles = ceil_div(params.n, kSplitColumns) * ceil_div(params.m, kMostTokens);
  if (params.m > 2 * kMostTokens) return std::nullopt;
  if (params.m > few && (2 * tiles > num_sms || params.k < kLongK * kBlockK)) return std::nullopt;
  // More than two blocks a multiprocessor would be a second wave.
  if (tiles > 2 * num_sms) return std::nullopt;
  const int tokens = params.m <= 16 ? 16 : params.m <= 32 ? 32 : 64;
  // A block a multiprocessor is enough; more ranks wait for each other longer than they gain, the sooner the less each
  // has to do.
  const int64_t most_splits = std::min<int64_t>(tokens == 16 ? 2 : 3, ceil_div(params.k, kBlockK));
  return SplitShape{.tokens = tokens,
                    .splits = static_cast<int>(std::clamp<int64_t>(num_sms / tiles, 1, most_splits)),
                    // With 64 tokens and two blocks a multiprocessor, starting after the predecessor's end is faster.
                    .pdl = tokens < 64 || tiles <= num_sms};
}

// The index of the shape that takes the least time.
template <int kCount>
int choose_tiles(const TileShape (&shapes)[kCount], const ScaledMmParams& params, int num_sms) {
  const int64_t blocks = ceil_div(params.k, kBlockK);
  const auto tiles_of = [&](int rows, int columns) {
    return params.batches * ceil_div(params.m, rows) * ceil_div(params.n, columns);
  };
  const bool many = tiles_of(kManyRows, kManyColumns) >= kManyWaves * num_sms;
  const bool promotes = params.a_dtype != DType::kI8 && !params.blockwise && blocks > matmul::kPromotedBlocks;
  int best = kCount - 1;
  float best_us = 0.0f;
  for (int i = kCount - 1; i >= 0; --i) {
    const TileShape& shape = shapes[i];
    if (many && shape.rows * shape.columns < kLeastArea) continue;
    if (promotes && !shape.promotes()) continue;
    const int64_t waves = ceil_div(tiles_of(shape.rows, shape.columns), num_sms);
    const int64_t promotions = promotes && shape.teams > 1 ? (blocks - 1) / matmul::kPromotedBlocks : 0;
    const float tile_us = static_cast<float>(blocks) * shape.block_us + shape.end_us +
                          static_cast<float>(promotions * shape.rows * shape.columns) * kPromotionUs;
    const float us = shape.start_us + static_cast<float>(waves) * tile_us;
    if (best_us == 0.0f || us < best_us) {
      best = i;
      best_us = us;
    }
  }
  return best;
}

// The kernels for few rows take a product at a time.
Status multiply(const ScaledMmParams& params, Stream stream) {
  const int sms = num_sms();
  const bool is_int8 = params.a_dtype == DType::kI8, is_one = params.batches == 1;
  if (is_int8 || params.blockwise) {
    if (const std::optional<SplitShape> split = choose_split(params, sms)) {
      return is_int8 ? scaled_mm_split_int8(params, *split, stream) : scaled_mm_split_blockwise(params, *split, stream);
    }
  } else if (const std::optional<FewRowsShape> few_rows = choose_few_rows(params, sms); few_rows && is_one) {
    return scaled_mm_few_rows_e4m3(params, *few_rows, stream);
  }
  if (params.blockwise) {
    return scaled_mm_tiles_blockwise(params, choose_tiles(kBlockwiseShapes, params, sms), stream);
  }
  const int tiles = choose_tiles(kTileShapes, params, sms);
  return is_int8 ? scaled_mm_tiles_int8(params, tiles, stream) : scaled_mm_tiles_e4m3(params, tiles, stream);
}

}  // namespace

Status scaled_mm(const ScaledMmParams& params, Stream stream) {
  const bool is_e5m2 = params.a_dtype == DType::kF8E5M2 || params.b_dtype == DType::kF8E5M2;
  return copy_engine_takes(params) && !is_e5m2 ? multiply(params, stream) : scaled_mm_portable(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
