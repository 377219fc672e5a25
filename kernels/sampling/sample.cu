// Token sampling, portable: a block of 512 threads for each sample reads a sample of its row, then the row; again only
// where that sample misled. Bound by memory at large batches, by one multiprocessor's share of it at small ones.
#include "kernels/sampling/block_group.cuh"
#include "kernels/sampling/sample_row.cuh"

namespace sgl_kernel::SGL_TARGET {

Status sample_tokens(const SampleParams& params, Stream stream) {
  return run_sample_tokens<BlockGroup>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
