// Token sampling on Hopper: a cluster of 8, 4, 2 or 1 blocks of 512 threads for each sample, so that all samples of a
// batch run at once, one block a multiprocessor (batches up to 12, 24, 66, beyond). Two barriers of the cluster, behind
// the sample and behind the pass over the row.
//
// H200, 2026-11-23, vocabulary 151936, softmax of normal logits times 3, k = 50, p = 0.9, min-p 0.05, in CUDA graphs,
// without the drawing of the seed (which adds 3 to 5), in µs at a batch of 1 / 16 / 128: top-k-top-p joint 12 / 14 /
// 28, top-k first 13 / 15 / 28, top-p 16 / 20 / 39, min-p 8 / 10 / 25, no filter 6 / 9 / 28. At 128 the pass is bound
// by memory where few values are listed; that of top-p, some 6500, takes a third longer, by its instructions. At 1 the
// pass is the longest of ten stages, a fifth of the time. Rows of equal or of few different values are slow where the
// threshold falls among them, for search() reads the row two or three times: of equal values, about 290 at 128 and 80
// at 1 (joint). So are sorted rows at small batches (about 50 at 1), for the part of one rank overflows.
#include "kernels/sampling/cluster_sm90.cuh"
#include "kernels/sampling/sample_row.cuh"

namespace sgl_kernel::SGL_TARGET {

Status sample_tokens(const SampleParams& params, Stream stream) {
  return run_sample_tokens<ClusterGroup>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
