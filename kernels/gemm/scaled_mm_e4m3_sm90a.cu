// The Hopper kernels for e4m3 operands.
#include "kernels/gemm/scaled_mm_shapes_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

Status scaled_mm_tiles_e4m3(const ScaledMmParams& params, int shape, Stream stream) {
  return launch_tile_shape<float, kTileShapes>(params, shape, stream);
}

Status scaled_mm_few_rows_e4m3(const ScaledMmParams& params, const FewRowsShape& shape, Stream stream) {
  return launch_few_rows_shape<float>(params, shape, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
