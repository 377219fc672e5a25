// Which kernel of marlin_gemm_tile.cuh serves gptq_marlin_gemm, and what runs around it: act-order gathers a's columns
// first, and the sums of several splits of K are added up afterwards, in their order. No figure is measured yet.
#include "kernels/gemm/marlin_gemm_portable.h"
#include "kernels/gemm/marlin_gemm_tile.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

using marlin::Config;
using marlin::Format;
using marlin::Mode;

constexpr char kName[] = "gptq_marlin_gemm";

template <class C>
Status launch_tiles(const MarlinGemmParams& params, Stream stream) {
  const int64_t row_blocks = (params.m + C::kRows - 1) / C::kRows;
  const int64_t blocks = row_blocks * ((params.n + kMixedTileColumns - 1) / kMixedTileColumns);
  if (blocks > INT32_MAX) return InvalidArgument("gptq_marlin_gemm: a is too large, expected less than 2^31 tiles");
  SGL_RETURN_IF_ERROR(allow_shared_memory(kName, marlin::marlin_gemm_kernel<C>, C::kSharedBytes));
  return launch(kName, marlin::marlin_gemm_kernel<C>,
                {.grid = dim3(static_cast<unsigned>(blocks), 1, static_cast<unsigned>(params.num_splits)),
                 .block = C::kThreads,
                 .shared_bytes = C::kSharedBytes},
                stream, params, static_cast<unsigned>(row_blocks));
}

template <class T, Format kFormat>
Status choose_rows(const MarlinGemmParams& params, Stream stream) {
  // The rare modes have the kernel for few rows alone.
  constexpr bool kIntegers = kFormat == Format::kInt4 || kFormat == Format::kInt8;
  if constexpr (kIntegers) {
    if (params.groups != nullptr) return launch_tiles<Config<T, kFormat, Mode::kIrregular, 1>>(params, stream);
  }
  if constexpr (kIntegers && std::is_same_v<T, __half>) {
    if (params.zeros_are_float) return launch_tiles<Config<T, kFormat, Mode::kFloatZeros, 1>>(params, stream);
  }
  if (params.m <= kMixedFewRows) return launch_tiles<Config<T, kFormat, Mode::kRegular, 1>>(params, stream);
  return launch_tiles<Config<T, kFormat, Mode::kRegular, 2>>(params, stream);
}

template <class T>
Status run(const MarlinGemmParams& params, Stream stream) {
  if (params.columns != nullptr) {
    SGL_RETURN_IF_ERROR(mixed_mm::gather_columns(kName, params.gathered, params.a, params.a_stride, params.columns,
                                                 params.m, params.k, stream));
  }
  switch (params.type) {
    case MarlinType::kU4:
    case MarlinType::kU4B8:
      SGL_RETURN_IF_ERROR((choose_rows<T, Format::kInt4>(params, stream)));
      break;
    case MarlinType::kU8:
    case MarlinType::kU8B128:
      SGL_RETURN_IF_ERROR((choose_rows<T, Format::kInt8>(params, stream)));
      break;
    case MarlinType::kE4M3:
      SGL_RETURN_IF_ERROR((choose_rows<T, Format::kE4M3>(params, stream)));
      break;
    case MarlinType::kE2M1:
      SGL_RETURN_IF_ERROR((choose_rows<T, Format::kE2M1>(params, stream)));
      break;
  }
  if (params.partials == nullptr) return OkStatus();
  const bool is_fp4 = params.type == MarlinType::kE2M1;
  const float constant = !is_fp4 ? 1.0f : params.dtype == DType::kF16 ? 0x1p-14f : 0x1p-126f;
  return mixed_mm::add_splits(kName, static_cast<T*>(params.result), params.partials, params.num_splits,
                              params.m * params.n, static_cast<const T*>(params.global_scale), constant, stream);
}

}  // namespace

Status multiply_marlin_portable(const MarlinGemmParams& params, Stream stream) {
  return params.dtype == DType::kF16 ? run<__half>(params, stream) : run<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
