// From a shape chosen at run time to its instantiation.
#pragma once

#include <iterator>
#include <utility>

#include "kernels/gemm/scaled_mm_sm90a.h"
#include "kernels/gemm/scaled_mm_split_sm90a.cuh"
#include "kernels/gemm/scaled_mm_tiles_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

// `shape` is an index of kShapes, a table of TileShape.
template <class Sum, const auto& kShapes, bool kBlockwise = false>
Status launch_tile_shape(const ScaledMmParams& params, int shape, Stream stream) {
  using namespace scaled_mm_tiles;
  using Launch = Status(const ScaledMmParams&, Stream);
  constexpr int kCount = static_cast<int>(std::size(kShapes));
  constexpr auto kLaunches = []<int... i>(std::integer_sequence<int, i...>) {
    struct {
      Launch* at[kCount];
    } table = {{&launch_tiles<Config<Sum, kShapes[i].teams, kShapes[i].rows, kShapes[i].columns, kBlockwise>>...}};
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
