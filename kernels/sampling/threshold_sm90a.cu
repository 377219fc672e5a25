// Rows cut at a threshold on Hopper: a cluster of 8, 4, 2 or 1 blocks of 512 threads for each row, so many that all
// rows of a batch run at once, one block a multiprocessor.
#include "kernels/sampling/cluster_sm90.cuh"
#include "kernels/sampling/threshold_row.cuh"

namespace sgl_kernel::SGL_TARGET {

Status apply_threshold(const ThresholdParams& params, Stream stream) {
  return run_apply_threshold<ClusterGroup>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
