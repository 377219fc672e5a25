// The fp8 kernels of few queries: a file of their own, so that they build beside the others.
#include "kernels/attention/flash_attention_grouped_heads_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET {

Status attend_grouped_heads_fp8(const AttentionParams& params, Stream stream) {
  return run_grouped_heads<ClusterBlocks, __nv_fp8_e4m3>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
