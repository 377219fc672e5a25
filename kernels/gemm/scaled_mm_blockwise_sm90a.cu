// The Hopper kernels for e4m3 operands with a scale for each block.
#include "kernels/gemm/scaled_mm_shapes_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

Status scaled_mm_tiles_blockwise(const ScaledMmParams& params, int shape, Stream stream) {
  constexpr auto kColumns = [](int i) { return kBlockwiseShapes[i].columns; };
  static_assert(kNumBlockwiseShapes == 3);
  using namespace scaled_mm_tiles;
  switch (shape) {
    case 0:
      return launch_tiles<Config<float, 1, 128, kColumns(0), true>>(params, stream);
    case 1:
      return launch_tiles<Config<float, 1, 128, kColumns(1), true>>(params, stream);
    default:
      return launch_tiles<Config<float, 1, 128, kColumns(2), true>>(params, stream);
  }
}

}  // namespace sgl_kernel::SGL_TARGET
