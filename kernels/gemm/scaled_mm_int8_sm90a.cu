// The Hopper kernels for int8 operands.
#include "kernels/gemm/scaled_mm_shapes_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

Status scaled_mm_tiles_int8(const ScaledMmParams& params, int shape, Stream stream) {
  return launch_tile_shape<int32_t, kTileShapes>(params, shape, stream);
}

Status scaled_mm_few_rows_int8(const ScaledMmParams& params, const FewRowsShape& shape, Stream stream) {
  return launch_few_rows_shape<int32_t>(params, shape, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
