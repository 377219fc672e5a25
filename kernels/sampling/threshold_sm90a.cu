// Rows cut at a threshold on Hopper: a cluster of 8, 4, 2 or 1 blocks of 512 threads for each row, so that all rows of
// a batch run at once, one block a multiprocessor (batches up to 12, 24, 66, beyond). Three barriers of the cluster.
//
// H200, 2026-11-23, vocabulary 151936, softmax of normal logits times 3, in CUDA graphs, in µs at a batch of
// 1 / 16 / 128: top-k renormalization (k = 50) 16 / 21 / 70, top-p (p = 0.9) 21 / 28 / 97, top-k mask 17 / 22 / 87. At
// 128 a row does not fit shared memory: it is read twice (top-k, whose output is zeros but for what is listed) or three
// times.
#include "kernels/sampling/cluster_sm90.cuh"
#include "kernels/sampling/threshold_row.cuh"

namespace sgl_kernel::SGL_TARGET {

Status apply_threshold(const ThresholdParams& params, Stream stream) {
  return run_apply_threshold<ClusterGroup>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
