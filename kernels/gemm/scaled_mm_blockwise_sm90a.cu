// The Hopper kernels for e4m3 operands with a scale for each block.
#include "kernels/gemm/scaled_mm_shapes_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

Status scaled_mm_tiles_blockwise(const ScaledMmParams& params, int shape, Stream stream) {
  return launch_tile_shape<float, kBlockwiseShapes, true>(params, shape, stream);
}

Status scaled_mm_few_rows_blockwise(const ScaledMmParams& params, const FewRowsShape& shape, Stream stream) {
  return launch_few_rows_shape<float, true>(params, shape, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
