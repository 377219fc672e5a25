// NVFP4 products on the tensor cores of sm_100a (tcgen05, block-scaled), by CUTLASS's persistent warp-specialized
// kernel: the copy engine brings values and scales, the sums are in tensor memory. What its copies do not take goes
// through the portable kernel.
//
// Grid: CUTLASS's, a block or a pair of blocks for each tile; which tile comes next is asked of the GPU. A tile of
// 256 x 256 for a pair of blocks where these fill the GPU, of 128 x 128 for a block otherwise. K is not split.
// Compiled, never run: nothing here is measured, and the tiles are those of CUTLASS's examples. `cuobjdump -sass` of
// the object shows the instruction as UTCOMMA.4X.
#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <algorithm>
#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <string>
#include <type_traits>

#include "kernels/base/launch.h"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/gemm/fp4_mm_portable.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

using cute::Int;

// kBlocks: 2 multiply a tile together, each having half of its rows.
template <int kRows_, int kColumns_, int kBlocks_>
struct Tile {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kBlocks = kBlocks_;
  static constexpr int kStepK = 256;
  using Shape = cute::Shape<Int<kRows>, Int<kColumns>, Int<kStepK>>;
  using Cluster = cute::Shape<Int<kBlocks>, Int<1>, Int<1>>;
  using Multiply = std::conditional_t<kBlocks == 2, cutlass::gemm::KernelTmaWarpSpecialized2SmNvf4Sm100,
                                      cutlass::gemm::KernelTmaWarpSpecialized1SmNvf4Sm100>;
  using Store = std::conditional_t<kBlocks == 2, cutlass::epilogue::TmaWarpSpecialized2Sm,
                                   cutlass::epilogue::TmaWarpSpecialized1Sm>;
};
using SmallTile = Tile<128, 128, 1>;
using LargeTile = Tile<256, 256, 2>;

// alpha * A * B^T, alpha read by the kernel.
template <class Tile, class Output>
struct Product {
  using Operand = cutlass::nv_float4_t<cutlass::float_e2m1_t>;  // with e4m3 scales of 16
  using RowMajor = cutlass::layout::RowMajor;
  using ColumnMajor = cutlass::layout::ColumnMajor;
  static constexpr int kOperandAlignment = 32, kOutputAlignment = 8;  // 16 bytes each

  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm100, cutlass::arch::OpClassTensorOp, typename Tile::Shape, typename Tile::Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, RowMajor, kOutputAlignment, Output, RowMajor,
      kOutputAlignment, typename Tile::Store,
      cutlass::epilogue::fusion::LinearCombination<Output, float, void, float>>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm100, cutlass::arch::OpClassBlockScaledTensorOp, Operand, RowMajor, kOperandAlignment, Operand,
      ColumnMajor, kOperandAlignment, float, typename Tile::Shape, typename Tile::Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      typename Tile::Multiply>::CollectiveOp;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<
      cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue>>;
};

template <class Gemm>
typename Gemm::Arguments arguments(const Fp4MmParams& params) {
  using Mainloop = typename Gemm::CollectiveMainloop;
  using Scales = typename Mainloop::Sm1xxBlkScaledConfig;
  constexpr int kBatches = 1, kNumbersInByte = 2;
  const auto shape =
      cute::make_shape(static_cast<int>(params.m), static_cast<int>(params.n), static_cast<int>(params.k), kBatches);
  typename Gemm::Arguments result = {};
  result.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  result.problem_shape = shape;
  auto& inputs = result.mainloop;
  inputs.ptr_A = reinterpret_cast<decltype(inputs.ptr_A)>(params.a.values);
  inputs.ptr_B = reinterpret_cast<decltype(inputs.ptr_B)>(params.b.values);
  inputs.dA = {params.a.stride * kNumbersInByte, {}, 0};
  inputs.dB = {params.b.stride * kNumbersInByte, {}, 0};
  inputs.ptr_SFA = reinterpret_cast<decltype(inputs.ptr_SFA)>(params.a.scales);
  inputs.ptr_SFB = reinterpret_cast<decltype(inputs.ptr_SFB)>(params.b.scales);
  inputs.layout_SFA = Scales::tile_atom_to_shape_SFA(shape);
  inputs.layout_SFB = Scales::tile_atom_to_shape_SFB(shape);
  result.epilogue.thread.alpha_ptr = params.alpha;
  result.epilogue.ptr_D = static_cast<decltype(result.epilogue.ptr_D)>(params.output);
  result.epilogue.dD = {params.output_stride, {}, 0};
  result.hw_info.sm_count = num_sms();
  return result;
}

template <class Tile, class Output>
Status multiply(const Fp4MmParams& params, Stream stream) {
  using Gemm = typename Product<Tile, Output>::Gemm;
  const typename Gemm::Arguments given = arguments<Gemm>(params);
  cutlass::Status status = Gemm::can_implement(given);
  Gemm gemm;
  // It needs no workspace, as K is not split.
  if (status == cutlass::Status::kSuccess) status = gemm.initialize(given);
  if (status == cutlass::Status::kSuccess) status = gemm.run(static_cast<cudaStream_t>(stream.handle));
  if (status == cutlass::Status::kSuccess) return OkStatus();
  return Internal(std::string(params.operator_name) + ": CUTLASS says " + cutlassGetStatusString(status));
}

template <class Output>
Status multiply_tiles(const Fp4MmParams& params, Stream stream) {
  const int64_t large_tiles =
      cute::ceil_div(params.m, int64_t{LargeTile::kRows}) * cute::ceil_div(params.n, int64_t{LargeTile::kColumns});
  return large_tiles * LargeTile::kBlocks >= num_sms() ? multiply<LargeTile, Output>(params, stream)
                                                       : multiply<SmallTile, Output>(params, stream);
}

// Whole tiles of scales along K, because those of no block may be NaN and would be multiplied with zeros; whole chunks
// of 16 bytes of the output's rows, because the copy engine stores them; and no more tiles than a grid has rows.
bool tensor_cores_take(const Fp4MmParams& params) {
  constexpr int64_t kTileK = kScaleTileColumns * kFp4Block, kOutputChunk = 8;
  constexpr int64_t kMost = kMostGridY * std::min(SmallTile::kRows, SmallTile::kColumns);
  return params.k > 0 && params.k % kTileK == 0 && params.n % kOutputChunk == 0 && params.m <= kMost &&
         params.n <= kMost && matrix_map_fits(params.a.values, params.m, params.k, params.a.stride) &&
         matrix_map_fits(params.b.values, params.n, params.k, params.b.stride) &&
         matrix_map_fits(params.output, params.m, params.n, params.output_stride * size_of(params.output_dtype));
}

}  // namespace

Status fp4_mm(const Fp4MmParams& params, Stream stream) {
  if (!tensor_cores_take(params)) return fp4_mm_portable(params, stream);
  return params.output_dtype == DType::kF16 ? multiply_tiles<cutlass::half_t>(params, stream)
                                            : multiply_tiles<cutlass::bfloat16_t>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
