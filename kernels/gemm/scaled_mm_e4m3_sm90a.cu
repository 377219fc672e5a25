// The Hopper kernels for e4m3 operands.
#include <utility>

#include "kernels/gemm/scaled_mm_few_rows_sm90a.cuh"
#include "kernels/gemm/scaled_mm_shapes_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

template <int kTokens>
Status launch_few_rows_columns(const ScaledMmParams& params, const FewRowsShape& shape, Stream stream) {
  using namespace scaled_mm_few_rows;
  using Launch = Status(const ScaledMmParams&, int, int, Stream);
  constexpr auto kLaunches = []<int... i>(std::integer_sequence<int, i...>) {
    struct {
      Launch* at[kNumFewRowsColumns];
    } table = {{&launch_few_rows<Config<kTokens, kFewRowsColumns[i]>>...}};
    return table;
  }(std::make_integer_sequence<int, kNumFewRowsColumns>());
  return kLaunches.at[shape.columns](params, shape.splits, shape.prefetched, stream);
}

}  // namespace

Status scaled_mm_tiles_e4m3(const ScaledMmParams& params, int shape, Stream stream) {
  return launch_tile_shape<float, kTileShapes>(params, shape, stream);
}

Status scaled_mm_few_rows_e4m3(const ScaledMmParams& params, const FewRowsShape& shape, Stream stream) {
  if (shape.tokens == 16) return launch_few_rows_columns<16>(params, shape, stream);
  if (shape.tokens == 64) return launch_few_rows_columns<64>(params, shape, stream);
  using namespace scaled_mm_few_rows;
  return launch_few_rows<Config<128, kLongColumns>>(params, shape.splits, shape.prefetched, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
