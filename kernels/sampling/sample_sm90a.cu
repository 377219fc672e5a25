// Token sampling on Hopper: a cluster of up to 8 blocks holds a row in its shared memory, reads it from global memory
// once, and searches there; six to eight cluster barriers, and more where a bin's values do not fit a list.
// H200, 2026-11-22, vocabulary 151936, tools/bench, in µs at a batch of 1 / 16 / 128: top-k-top-p joint 35 / 42 / 196,
// top-k first 44 / 53 / 249, top-p 29 / 36 / 153, min-p 25 / 30 / 133. Reckoned,
// not measured: 33 clusters of 8 fit 132 multiprocessors at once, so a batch of 128 takes four waves of them.
#include "kernels/base/launch.h"
#include "kernels/sampling/cluster_sm90.cuh"
#include "kernels/sampling/sample_row.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

template <bool kResident, bool kCount>
__global__ void __launch_bounds__(kClusterThreads, kResident ? 2 : 1)
    sample_kernel(const __grid_constant__ SampleParams params, int slice_size) {
  extern __shared__ __align__(16) unsigned char dynamic[];
  __shared__ RowShared shared;
  const unsigned ranks = ClusterGroup().size();
  sample_row<ClusterGroup, kResident, kCount, kClusterThreads>(params, blockIdx.x / ranks, slice_size, dynamic, shared);
}

template <bool kResident>
Status launch_kernel(const SampleParams& params, const ClusterShape& cluster, size_t other_bytes, Stream stream) {
  const auto kernel = params.has_top_k ? sample_kernel<kResident, true> : sample_kernel<kResident, false>;
  const size_t bytes = other_bytes + (kResident ? cluster.slice_size * sizeof(float) : 0);
  SGL_RETURN_IF_ERROR(allow_shared_memory(params.operator_name, kernel, bytes));
  const LaunchShape shape = {.grid = static_cast<unsigned>(params.num_samples * cluster.ranks),
                             .block = kClusterThreads,
                             .shared_bytes = bytes,
                             .cluster = cluster.ranks};
  return launch(params.operator_name, kernel, shape, stream, params, cluster.slice_size);
}

}  // namespace

Status sample_tokens(const SampleParams& params, Stream stream) {
  const size_t other_bytes = histogram_bytes<ProbKey>(params.has_top_k, true);
  const ClusterShape cluster = cluster_shape(params.vocab, other_bytes);
  return cluster.resident ? launch_kernel<true>(params, cluster, other_bytes, stream)
                          : launch_kernel<false>(params, cluster, other_bytes, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
