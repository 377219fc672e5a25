// Token sampling on Hopper: a cluster of 8, 4, 2 or 1 blocks of 512 threads for each sample, so that all samples of a
// batch run at once, one block a multiprocessor (batches up to 12, 24, 66, beyond). Three barriers of the cluster.
//
// H200, 2026-11-23, vocabulary 151936, softmax of normal logits times 3, k = 50, p = 0.9, min-p 0.05, in CUDA graphs
// with the drawing of the seed (1.6), in µs at a batch of 1 / 16 / 128: top-k-top-p joint 21 / 27 / 62, top-k first 25
// / 31 / 65, top-p 25 / 32 / 72, min-p 11 / 15 / 46. At 128, of 60 µs for joint (clock cycles of one block): load() 40%
// (bound by memory), gather() 40% (of what, was not profiled), search() 7%, draw() 8%. Rows of equal or
// of few different values are slow where the threshold falls among them: search() reads the row two or three times (390
// µs at 128, of equal values; 84 at 1).
#include "kernels/sampling/cluster_sm90.cuh"
#include "kernels/sampling/sample_row.cuh"

namespace sgl_kernel::SGL_TARGET {

Status sample_tokens(const SampleParams& params, Stream stream) {
  return run_sample_tokens<ClusterGroup>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
