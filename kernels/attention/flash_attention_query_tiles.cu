#include "kernels/attention/flash_attention_query_tiles.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

template <class T>
Status run(const AttentionParams& params, Stream stream) {
  if (params.head_dim <= 64 && params.head_dim_v <= 64) return run<T, 64, 64, 2, 64>(params, stream);
  if (params.head_dim <= 128 && params.head_dim_v <= 128) return run<T, 128, 128, 2, 64>(params, stream);
  if (params.head_dim <= 192 && params.head_dim_v <= 128) return run<T, 192, 128, 1, 48>(params, stream);
  return run<T, 256, 256, 1, 32>(params, stream);
}

}  // namespace

Status attend_query_tiles(const AttentionParams& params, Stream stream) {
  if (params.dtype == DType::kF8E4M3) return attend_query_tiles_fp8(params, stream);
  if (params.dtype == DType::kF16) return run<__half>(params, stream);
  return run<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
