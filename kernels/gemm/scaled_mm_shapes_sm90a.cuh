// From a shape chosen at run time to its instantiation.
#pragma once

#include <cstdint>
#include <iterator>
#include <type_traits>
#include <utility>

#include "kernels/gemm/scaled_mm_few_rows_sm90a.cuh"
#include "kernels/gemm/scaled_mm_sm90a.h"
#include "kernels/gemm/scaled_mm_tiles_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

template <class Sum, const TileShape& kShape, bool kBlockwise>
Status launch_one_shape(const ScaledMmParams& params, Stream stream) {
  using namespace scaled_mm_tiles;
  if constexpr (std::is_same_v<Sum, float> && !kBlockwise && kShape.promotes()) {
    if (params.k > kPromotedBlocks * kBlockK) {
      return launch_tiles<Config<Sum, kShape.teams, kShape.rows, kShape.columns, false, true>>(params, stream);
    }
  }
  return launch_tiles<Config<Sum, kShape.teams, kShape.rows, kShape.columns, kBlockwise>>(params, stream);
}

// `shape` is an index of kShapes, a table of TileShape.
template <class Sum, const auto& kShapes, bool kBlockwise = false>
Status launch_tile_shape(const ScaledMmParams& params, int shape, Stream stream) {
  using Launch = Status(const ScaledMmParams&, Stream);
  constexpr int kCount = static_cast<int>(std::size(kShapes));
  constexpr auto kLaunches = []<int... i>(std::integer_sequence<int, i...>) {
    struct {
      Launch* at[kCount];
    } table = {{&launch_one_shape<Sum, kShapes[i], kBlockwise>...}};
    return table;
  }(std::make_integer_sequence<int, kCount>());
  return kLaunches.at[shape](params, stream);
}

template <class Sum, bool kBlockwise, int kTokens, int kBlocks>
Status launch_few_rows_columns(const ScaledMmParams& params, const FewRowsShape& shape, Stream stream) {
  using namespace scaled_mm_few_rows;
  using Launch = Status(const ScaledMmParams&, int, Stream);
  constexpr bool kIsInt8 = std::is_same_v<Sum, int32_t>;
  constexpr auto kLaunches = []<int... i>(std::integer_sequence<int, i...>) {
    struct {
      Launch* at[kNumFewRowsColumns];
    } table = {{&launch_few_rows<
        Config<Sum, kTokens, few_rows_columns(kFewRowsColumns[i], kIsInt8), kBlocks, kBlockwise>>...}};
    return table;
  }(std::make_integer_sequence<int, kNumFewRowsColumns>());
  return kLaunches.at[shape.columns](params, shape.splits, stream);
}

template <class Sum, bool kBlockwise = false>
Status launch_few_rows_shape(const ScaledMmParams& params, const FewRowsShape& shape, Stream stream) {
  if (shape.tokens == 16) return launch_few_rows_columns<Sum, kBlockwise, 16, 2>(params, shape, stream);
  if constexpr (!kBlockwise) {
    if (shape.tokens == 128) return launch_few_rows_columns<Sum, kBlockwise, 128, 1>(params, shape, stream);
    if (shape.blocks == 1) return launch_few_rows_columns<Sum, kBlockwise, 64, 1>(params, shape, stream);
  }
  return launch_few_rows_columns<Sum, kBlockwise, 64, 2>(params, shape, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
