// Attention of few queries on targets without clusters.
#include "kernels/attention/flash_attention_grouped_heads.cuh"

namespace sgl_kernel::SGL_TARGET {

Status attend_grouped_heads(const AttentionParams& params, Stream stream) {
  return run_grouped_heads<SingleBlocks>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
