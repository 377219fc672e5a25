// The Hopper kernels for e4m3 operands.
#include "kernels/gemm/scaled_mm_shapes_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

Status scaled_mm_tiles_e4m3(const ScaledMmParams& params, int shape, Stream stream) {
  return launch_tile_shape<float, kTileShapes>(params, shape, stream);
}

Status scaled_mm_split_e4m3(const ScaledMmParams& params, const SplitShape& shape, Stream stream) {
  return launch_split_shape<float>(params, shape, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
