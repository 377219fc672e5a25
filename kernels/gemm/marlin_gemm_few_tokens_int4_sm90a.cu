// marlin_gemm_few_tokens_sm90a.cuh for 4-bit integers.
#include "kernels/gemm/marlin_gemm_few_tokens_sm90a.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

using marlin::Format;

template <class T>
Status choose_tiles(const MarlinGemmParams& params, Stream stream) {
  constexpr int kTiles = 4, kFewTiles = 2;  // for groups that are shorter than a step of kTiles
  if (params.num_groups > 1 && params.group_size < kTiles * kMarlinTileK) {
    return marlin_few_tokens::choose_zeros<T, Format::kInt4, kFewTiles>(params, stream);
  }
  return marlin_few_tokens::choose_zeros<T, Format::kInt4, kTiles>(params, stream);
}

}  // namespace

Status marlin_few_tokens_int4(const MarlinGemmParams& params, Stream stream) {
  return params.dtype == DType::kF16 ? choose_tiles<__half>(params, stream)
                                     : choose_tiles<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
