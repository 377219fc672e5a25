// From a shape chosen at run time to its instantiation.
#pragma once

#include <iterator>
#include <type_traits>
#include <utility>

#include "kernels/gemm/scaled_mm_sm90a.h"
#include "kernels/gemm/scaled_mm_split_sm90a.cuh"
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

template <class Sum, bool kBlockwise = false>
Status launch_split_shape(const ScaledMmParams& params, const SplitShape& shape, Stream stream) {
  using namespace scaled_mm_split;
  switch (shape.tokens) {
    case 16:
      return launch_split<Config<Sum, 16, kBlockwise>>(params, shape.splits, shape.pdl, stream);
    case 32:
      return launch_split<Config<Sum, 32, kBlockwise>>(params, shape.splits, shape.pdl, stream);
    default:
      return launch_split<Config<Sum, 64, kBlockwise>>(params, shape.splits, shape.pdl, stream);
  }
}

}  // namespace sgl_kernel::SGL_TARGET
