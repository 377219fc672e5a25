// From a shape chosen at run time to its instantiation.
#pragma once

#include <utility>

#include "kernels/gemm/scaled_mm_sm90a.h"
#include "kernels/gemm/scaled_mm_split_sm90a.cuh"
#include "kernels/gemm/scaled_mm_tiles_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

template <class Sum>
Status launch_tile_shape(const ScaledMmParams& params, int shape, Stream stream) {
  using Launch = Status(const ScaledMmParams&, Stream);
  constexpr auto kLaunches = []<int... i>(std::integer_sequence<int, i...>) {
    struct {
      Launch* at[kNumTileShapes];
    } table = {{&scaled_mm_tiles::launch_tiles<
        scaled_mm_tiles::Config<Sum, kTileShapes[i].teams, kTileShapes[i].rows, kTileShapes[i].columns>>...}};
    return table;
  }(std::make_integer_sequence<int, kNumTileShapes>());
  return kLaunches.at[shape](params, stream);
}

template <class Sum>
Status launch_split_shape(const ScaledMmParams& params, const SplitShape& shape, Stream stream) {
  using namespace scaled_mm_split;
  switch (shape.tokens) {
    case 16:
      return launch_split<Config<Sum, 16>>(params, shape.splits, shape.pdl, stream);
    case 32:
      return launch_split<Config<Sum, 32>>(params, shape.splits, shape.pdl, stream);
    default:
      return launch_split<Config<Sum, 64>>(params, shape.splits, shape.pdl, stream);
  }
}

}  // namespace sgl_kernel::SGL_TARGET
