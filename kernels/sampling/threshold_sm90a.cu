// Rows cut at a threshold on Hopper: a cluster of up to 8 blocks holds a row in its shared memory, reads it once, finds
// the threshold there and writes the row once. H200, 2026-11-22, vocabulary 151936, tools/bench, in µs at a batch of
// 1 / 16 / 128: top-k renormalization 26 / 33 / 169, top-p 27 / 34 / 168. Reckoned,
// not measured: 33 clusters of 8 fit 132 multiprocessors at once, so a batch of 128 takes four waves of them.
#include "kernels/base/launch.h"
#include "kernels/sampling/cluster_sm90.cuh"
#include "kernels/sampling/threshold_row.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

template <Threshold kThreshold, bool kResident>
__global__ void __launch_bounds__(kClusterThreads, kResident ? 2 : 1)
    threshold_kernel(const __grid_constant__ ThresholdParams params, int slice_size) {
  extern __shared__ __align__(16) unsigned char dynamic[];
  __shared__ RowShared shared;
  const unsigned ranks = ClusterGroup().size();
  threshold_row<ClusterGroup, kThreshold, kResident, kClusterThreads>(params, blockIdx.x / ranks, slice_size, dynamic,
                                                                      shared);
}

template <Threshold kThreshold>
Status run(const ThresholdParams& params, Stream stream) {
  using Traits = ThresholdTraits<kThreshold>;
  const size_t other_bytes = histogram_bytes<typename Traits::Key>(Traits::kCount, Traits::kMass);
  const ClusterShape cluster = cluster_shape(params.vocab, other_bytes);
  const auto kernel = cluster.resident ? threshold_kernel<kThreshold, true> : threshold_kernel<kThreshold, false>;
  const size_t bytes = other_bytes + (cluster.resident ? cluster.slice_size * sizeof(float) : 0);
  SGL_RETURN_IF_ERROR(allow_shared_memory(params.operator_name, kernel, bytes));
  const LaunchShape shape = {.grid = static_cast<unsigned>(params.num_rows * cluster.ranks),
                             .block = kClusterThreads,
                             .shared_bytes = bytes,
                             .cluster = cluster.ranks};
  return launch(params.operator_name, kernel, shape, stream, params, cluster.slice_size);
}

}  // namespace

Status apply_threshold(const ThresholdParams& params, Stream stream) {
  switch (params.threshold) {
    case Threshold::kTopKRenorm:
      return run<Threshold::kTopKRenorm>(params, stream);
    case Threshold::kTopPRenorm:
      return run<Threshold::kTopPRenorm>(params, stream);
    case Threshold::kTopKMask:
      return run<Threshold::kTopKMask>(params, stream);
  }
  return Internal("apply_threshold: no such threshold");
}

}  // namespace sgl_kernel::SGL_TARGET
