// The entry of Hopper: which kernel takes a shape.
#include <algorithm>
#include <optional>

#include "kernels/base/launch.h"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/gemm/scaled_mm_portable.h"
#include "kernels/gemm/scaled_mm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kLeastTileRows = 64, kLeastTileColumns = 32;  // of the persistent kernel
constexpr int kBlockK = 128;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the copy engine and the stores of 16 bytes can take.
bool copy_engine_takes(const ScaledMmParams& params) {
  constexpr int kOutputBytes = 2;
  constexpr int64_t kMostTiles = int64_t{1} << 30;
  return params.k > 0 && params.n % (16 / kOutputBytes) == 0 &&
         matrix_map_fits(params.a, params.m, params.k, params.a_stride) &&
         matrix_map_fits(params.b, params.n, params.k, params.b_stride) &&
         matrix_map_fits(params.output, params.m, params.n, params.output_stride * kOutputBytes) &&
         ceil_div(params.m, kLeastTileRows) * ceil_div(params.n, kLeastTileColumns) <= kMostTiles;
}

// The kernel for few rows takes up to 64 of them, and up to 128 where K is long and there are so few columns that K can
// be split four times even so. Of its shapes the one that takes the least time, by a model fitted to
// times on an H200 (2026-11-23; the N and K of kTileShapes): those of its choices are 0.4% above the least on average,
// 10% at most.
std::optional<FewRowsShape> choose_few_rows(const ScaledMmParams& params, int num_sms) {
  constexpr int64_t kFew = 64, kMostSplits = 4, kLongK = 32;  // kLongK in blocks
  constexpr int kStagesBytes = 111 * 1024;                    // of a block, of which a multiprocessor has two
  constexpr float kLatencyUs = 1.35f;                         // until a stage is full
  const int64_t k_blocks = ceil_div(params.k, kBlockK);
  const bool is_long = params.m > kFew;
  if (params.m > 2 * kFew || (is_long && k_blocks < kLongK)) return std::nullopt;
  const int tokens = params.m <= 16 ? 16 : is_long && !params.blockwise ? 128 : 64;
  struct {
    float column_us, block_us;    // of a block of K: a column of it, and itself
    float exchange_us, split_us;  // of splitting at all, and of each further split
    float pair_us;                // what two blocks hide of each other
  } constexpr kFewTokens = {0.0035f, 0.067f, 0.95f, 0.05f, 0.25f}, kManyTokens = {0.0025f, 0.0045f, 1.9f, 0.1f, 0.5f};
  const auto& cost = tokens == 16 ? kFewTokens : kManyTokens;
  std::optional<FewRowsShape> best;
  float best_us = 0.0f;
  for (int i = 0; i < kNumFewRowsColumns; ++i) {
    if (is_long && kFewRowsColumns[i] != kLongColumns) continue;
    const int columns = few_rows_columns(kFewRowsColumns[i], params.a_dtype == DType::kI8);
    const float stages = static_cast<float>(kStagesBytes / ((tokens + columns) * kBlockK));
    for (int splits = is_long ? kMostSplits : 1; splits <= std::min(kMostSplits, k_blocks); ++splits) {
      const int64_t tiles = ceil_div(params.n, columns) * ceil_div(params.m, tokens);
      const int64_t blocks = tiles * splits, k_blocks_each = ceil_div(k_blocks, splits);
      // Clusters of more than two do not fill all of the chip's groups of multiprocessors.
      const int64_t room = splits > 2 ? num_sms * 10 / 11 : num_sms;
      // Each multiprocessor has one, or most of them have two.
      const bool is_pair = blocks > room;
      if (is_pair && (tokens == 128 || blocks > 2 * room || 3 * blocks < 5 * room)) continue;
      if (is_long && k_blocks_each > kLongK) continue;
      const float each_us = (is_pair ? 2.0f : 1.0f) * (static_cast<float>(columns) * cost.column_us + cost.block_us);
      const float us = static_cast<float>(k_blocks_each) * std::max(each_us, kLatencyUs / stages) +
                       (splits > 1 ? cost.exchange_us + static_cast<float>(splits - 1) * cost.split_us : 0.0f) -
                       (is_pair ? cost.pair_us : 0.0f);
      if (best.has_value() && us >= best_us) continue;
      best = {.tokens = tokens, .columns = i, .splits = splits};
      best_us = us;
    }
  }
  return best;
}

// The index of the shape that takes the least time.
template <int kCount>
int choose_tiles(const TileShape (&shapes)[kCount], const ScaledMmParams& params, int num_sms) {
  const int64_t blocks = ceil_div(params.k, kBlockK);
  const TileShape& last = shapes[kCount - 1];
  const bool many = ceil_div(params.m, last.rows) * ceil_div(params.n, last.columns) >= kManyWaves * num_sms;
  int best = kCount - 1;
  float best_us = 0.0f;
  for (int i = kCount - 1; i >= 0; --i) {
    const TileShape& shape = shapes[i];
    if (many && (shape.teams != last.teams || shape.rows != last.rows)) continue;
    const int64_t waves = ceil_div(ceil_div(params.m, shape.rows) * ceil_div(params.n, shape.columns), num_sms);
    const float us =
        shape.start_us + static_cast<float>(waves) * (static_cast<float>(blocks) * shape.block_us + shape.end_us);
    if (best_us == 0.0f || us < best_us) {
      best = i;
      best_us = us;
    }
  }
  return best;
}

Status multiply_one(const ScaledMmParams& params, Stream stream) {
  const int sms = num_sms();
  const bool is_int8 = params.a_dtype == DType::kI8;
  if (const std::optional<FewRowsShape> few_rows = choose_few_rows(params, sms)) {
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

ScaledMmParams one_of_batches(const ScaledMmParams& params, int64_t batch) {
  constexpr int64_t kOutputBytes = 2;
  ScaledMmParams one = params;
  one.batches = 1;
  one.a = static_cast<const uint8_t*>(params.a) + batch * params.a_batch_stride;
  one.b = static_cast<const uint8_t*>(params.b) + batch * params.b_batch_stride;
  one.output = static_cast<uint8_t*>(params.output) + batch * params.output_batch_stride * kOutputBytes;
  return one;
}

// Batches are a launch each where one of them keeps all multiprocessors busy with the largest tiles; smaller ones go
// through the portable kernel in one launch.
bool launches_each_batch(const ScaledMmParams& params) {
  const TileShape& largest = kTileShapes[kNumTileShapes - 1];
  return ceil_div(params.m, largest.rows) * ceil_div(params.n, largest.columns) >= num_sms() &&
         copy_engine_takes(params) && copy_engine_takes(one_of_batches(params, 1));
}

}  // namespace

Status scaled_mm(const ScaledMmParams& params, Stream stream) {
  if (params.a_dtype == DType::kF8E5M2 || params.b_dtype == DType::kF8E5M2) return scaled_mm_portable(params, stream);
  if (params.batches == 1) {
    return copy_engine_takes(params) ? multiply_one(params, stream) : scaled_mm_portable(params, stream);
  }
  if (!launches_each_batch(params)) return scaled_mm_portable(params, stream);
  for (int64_t batch = 0; batch < params.batches; ++batch) {
    SGL_RETURN_IF_ERROR(multiply_one(one_of_batches(params, batch), stream));
  }
  return OkStatus();
}

}  // namespace sgl_kernel::SGL_TARGET
