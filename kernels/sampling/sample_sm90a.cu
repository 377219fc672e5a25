// Token sampling on Hopper: a cluster of 8, 4, 2 or 1 blocks of 512 threads for each sample, so many that all samples
// of a batch run at once, one block a multiprocessor.
#include "kernels/sampling/cluster_sm90.cuh"
#include "kernels/sampling/sample_row.cuh"

namespace sgl_kernel::SGL_TARGET {

Status sample_tokens(const SampleParams& params, Stream stream) {
  return run_sample_tokens<ClusterGroup>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
