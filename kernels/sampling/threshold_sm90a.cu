// Rows cut at a threshold on Hopper: a cluster of 8, 4, 2 or 1 blocks of 512 threads for each row, so that all rows of
// a batch run at once, one block a multiprocessor (batches up to 12, 24, 66, beyond). Two barriers of the cluster. A
// row is read once where the list holds all that is kept; else it is read again. Of few listed values, the sectors
// without any are written in the same pass; of many, all is written behind it.
//
// H200, 2026-11-23, vocabulary 151936, softmax of normal logits times 3, in CUDA graphs, in µs at a batch of
// 1 / 16 / 128: top-k renormalization (k = 50) 10 / 14 / 48, top-p (p = 0.9) 15 / 20 / 54, top-k mask 10 / 14 / 49. At
// 128 (k = 50) three quarters of that are the pass, bound by memory, and 15% the sample before it.
#include "kernels/sampling/cluster_sm90.cuh"
#include "kernels/sampling/threshold_row.cuh"

namespace sgl_kernel::SGL_TARGET {

Status apply_threshold(const ThresholdParams& params, Stream stream) {
  return run_apply_threshold<ClusterGroup>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
