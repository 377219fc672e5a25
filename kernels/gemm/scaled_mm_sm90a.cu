// The entry of Hopper: which kernel takes a shape.
#include <algorithm>
#include <optional>

#include "kernels/base/launch.h"
#include "kernels/device/matmul_sm90.cuh"
#include "kernels/gemm/scaled_mm_portable.h"
#include "kernels/gemm/scaled_mm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

using matmul::kBlockK;

constexpr int kLeastTileRows = 64, kLeastTileColumns = 32;  // of the persistent kernel

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the copy engine and the stores of 16 bytes can take.
bool copy_engine_takes(const ScaledMmParams& params) {
  constexpr int kOutputBytes = 2;
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  // An operand may be one for all batches, at a distance of 0.
  const auto distance_fits = [&](int64_t batch_bytes) {
    return params.batches == 1 || (batch_bytes >= 0 && batch_bytes % 16 == 0 && batch_bytes < (int64_t{1} << 40));
  };
  return params.k > 0 && params.n % (16 / kOutputBytes) == 0 &&
         matrix_map_fits(params.a, params.m, params.k, params.a_stride) &&
         matrix_map_fits(params.b, params.n, params.k, params.b_stride) &&
         matrix_map_fits(params.output, params.m, params.n, params.output_stride * kOutputBytes) &&
         distance_fits(params.a_batch_stride) && distance_fits(params.b_batch_stride) &&
         distance_fits(params.output_batch_stride * kOutputBytes) && params.batches <= kMostTiles &&
         params.batches * ceil_div(params.m, kLeastTileRows) * ceil_div(params.n, kLeastTileColumns) <= kMostTiles;
}

// The kernel for few rows takes up to 128 of them; blockwise more than 64 only where K is long (but not over four times
// kLongK) and there are so few columns that K can be split four times even so. Of its shapes the one that takes the
// least time, by a model fitted to times on an H200 (2026-11-23; the N and K of kTileShapes).
std::optional<FewRowsShape> choose_few_rows(const ScaledMmParams& params, int num_sms) {
  constexpr int64_t kFew = 64, kMostSplits = 4, kLongK = 32;  // kLongK in blocks
  constexpr int kStagesBytes = 222 * 1024;  // of a multiprocessor: of two blocks, or of one of 128 tokens
  constexpr float kLatencyUs = 1.35f;       // until a stage is full
  const int64_t k_blocks = ceil_div(params.k, kBlockK);
  const bool many = params.m > kFew;
  if (params.m > 2 * kFew) return std::nullopt;
  const int tokens = params.m <= 16 ? 16 : many && !params.blockwise ? 128 : 64;
  struct {
    float column_us, block_us;    // of a block of K: a column of it from memory, and itself
    float row_us;                 // or, if that takes longer, a token or column of it to its multiprocessor
    float exchange_us, split_us;  // of splitting at all, and of each further split
    float pair_us;                // what two blocks hide of each other
  } constexpr kFewTokens = {0.0035f, 0.067f, 0.0f, 0.95f, 0.05f, 0.25f},
              kManyTokens = {0.0025f, 0.0045f, 0.0f, 1.9f, 0.1f, 0.5f},
              kMostTokens = {0.0038f, 0.0f, 0.0011f, 1.5f, 0.5f, 0.0f};
  const auto& cost = tokens == 16 ? kFewTokens : tokens == 64 ? kManyTokens : kMostTokens;
  std::optional<FewRowsShape> best;
  float best_us = 0.0f;
  for (int i = 0; i < kNumFewRowsColumns; ++i) {
    const int columns = few_rows_columns(kFewRowsColumns[i], params.a_dtype == DType::kI8);
    const float stages = static_cast<float>(kStagesBytes / (tokens == 128 ? 1 : 2) / ((tokens + columns) * kBlockK));
    for (int splits = 1; splits <= std::min(kMostSplits, k_blocks); ++splits) {
      const int64_t tiles = ceil_div(params.n, columns) * ceil_div(params.m, tokens);
      const int64_t blocks = tiles * splits, k_blocks_each = ceil_div(k_blocks, splits);
      // Clusters of more than two do not fill all of the chip's groups of multiprocessors, those of three the least.
      const int64_t room = splits > 3 ? num_sms * 10 / 11 : splits > 2 ? num_sms * 8 / 9 : num_sms;
      // Each multiprocessor has one, or most of them have two.
      const bool is_pair = blocks > room;
      if (is_pair && (tokens == 128 || blocks > 2 * room || 3 * blocks < 5 * room)) continue;
      if (many && params.blockwise &&
          (columns != kLongColumns || splits < kMostSplits || k_blocks < kLongK || k_blocks_each > kLongK)) {
        continue;
      }
      const float each_us =
          (is_pair ? 2.0f : 1.0f) * std::max(static_cast<float>(columns) * cost.column_us + cost.block_us,
                                             static_cast<float>(tokens + columns) * cost.row_us);
      const float us = static_cast<float>(k_blocks_each) * std::max(each_us, kLatencyUs / stages) +
                       (splits > 1 ? cost.exchange_us + static_cast<float>(splits - 1) * cost.split_us : 0.0f) -
                       (is_pair ? cost.pair_us : 0.0f);
      if (best.has_value() && us >= best_us) continue;
      // A block that is alone on its multiprocessor for long takes all of its shared memory.
      const bool is_alone = tokens == 128 || (tokens == 64 && !params.blockwise && !is_pair && k_blocks_each >= kLongK);
      best = {.tokens = tokens, .columns = i, .splits = splits, .blocks = is_alone ? 1 : 2};
      best_us = us;
    }
  }
  return best;
}

// The index of the shape that takes the least time.
template <int kCount>
int choose_tiles(const TileShape (&shapes)[kCount], const ScaledMmParams& params, int num_sms) {
  const int64_t blocks = ceil_div(params.k, kBlockK);
  const auto tiles_of = [&](int rows, int columns) {
    return params.batches * ceil_div(params.m, rows) * ceil_div(params.n, columns);
  };
  // Few rows of many batches or columns are bound by memory: nothing is won by tiles that they do not fill.
  const bool many = params.m >= kManyRows && tiles_of(kManyRows, kManyColumns) >= kManyWaves * num_sms;
  const bool promotes = params.a_dtype != DType::kI8 && !params.blockwise && blocks > matmul::kPromotedBlocks;
  int best = kCount - 1;
  float best_us = 0.0f;
  for (int i = kCount - 1; i >= 0; --i) {
    const TileShape& shape = shapes[i];
    if (many && shape.rows * shape.columns < kLeastArea) continue;
    if (promotes && !shape.promotes()) continue;
    const int64_t waves = ceil_div(tiles_of(shape.rows, shape.columns), num_sms);
    // The second team would have nothing to do: 128 x 24576 x 1536 takes 7% less with one.
    if (shape.teams > 1 && shape.rows == kManyRows && waves == 1) continue;
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

// The kernels for few rows take a product at a time, but for the one whose K is short.
Status multiply(const ScaledMmParams& params, Stream stream) {
  if (params.batches > 1 && scaled_mm_short_k_takes(params)) return scaled_mm_short_k(params, stream);
  const int sms = num_sms();
  const bool is_int8 = params.a_dtype == DType::kI8;
  const auto few_rows = params.batches == 1 ? choose_few_rows(params, sms) : std::nullopt;
  if (few_rows.has_value()) {
    if (params.blockwise) return scaled_mm_few_rows_blockwise(params, *few_rows, stream);
    return is_int8 ? scaled_mm_few_rows_int8(params, *few_rows, stream)
                   : scaled_mm_few_rows_e4m3(params, *few_rows, stream);
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
