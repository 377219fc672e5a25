// Attention of few queries on targets without clusters.
#include "kernels/attention/flash_attention_grouped_heads.cuh"

namespace sgl_kernel::SGL_TARGET {

Status attend_grouped_heads(const AttentionParams& params, Stream stream) {
  if (params.dtype == DType::kF8E4M3) return attend_grouped_heads_fp8(params, stream);
  if (params.dtype == DType::kF16) return run_grouped_heads<SingleBlocks, __half>(params, stream);
  return run_grouped_heads<SingleBlocks, __nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
