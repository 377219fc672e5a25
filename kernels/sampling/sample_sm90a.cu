// Token sampling on Hopper: a cluster of 8, 4, 2 or 1 blocks of 512 threads for each sample, so that all samples of a
// batch run at once, one block a multiprocessor (batches up to 12, 24, 66, beyond). Two barriers of the cluster, behind
// the sample and behind the pass over the row.
//
// H200, 2026-11-23, vocabulary 151936, softmax of normal logits times 3, k = 50, p = 0.9, min-p 0.05, in CUDA graphs
// with the drawing of the seed (1.6), in µs at a batch of 1 / 16 / 128: top-k-top-p joint 18 / 24 / 40, top-k first 21
// / 25 / 42, top-p 25 / 30 / 56, min-p 12 / 17 / 34, no filter 10 / 13 / 32. What bounds the pass is not known: from 64
// to 128 rows the time without a filter grows by 3.3 TB/s. The longer list of top-p, some 6500 values instead of 300,
// costs 16 at 128. Rows of equal or of few different values are slow where the threshold falls among them, for search()
// reads the row two or three times: of equal values, about 300 at 128 and 90 at 1 (joint). So are sorted rows at small
// batches (about 50 at 1), for the part of one rank overflows.
#include "kernels/sampling/cluster_sm90.cuh"
#include "kernels/sampling/sample_row.cuh"

namespace sgl_kernel::SGL_TARGET {

Status sample_tokens(const SampleParams& params, Stream stream) {
  return run_sample_tokens<ClusterGroup>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
