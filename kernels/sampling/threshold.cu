// Rows cut at a threshold, portable: a block of 1024 threads for each row, which it reads from global memory in each
// pass (five or six; the L2 cache serves the later ones) and writes once. Bound by memory at large batches, by one
// multiprocessor's share of it at small ones.
#include "kernels/base/launch.h"
#include "kernels/sampling/block_group.cuh"
#include "kernels/sampling/threshold_row.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

template <Threshold kThreshold>
__global__ void __launch_bounds__(kBlockGroupThreads) threshold_kernel(ThresholdParams params, int slice_size) {
  extern __shared__ __align__(16) unsigned char dynamic[];
  __shared__ RowShared shared;
  threshold_row<BlockGroup, kThreshold, /*kResident=*/false, kBlockGroupThreads>(params, blockIdx.x, slice_size,
                                                                                 dynamic, shared);
}

template <Threshold kThreshold>
Status run(const ThresholdParams& params, Stream stream) {
  using Traits = ThresholdTraits<kThreshold>;
  const LaunchShape shape = {.grid = static_cast<unsigned>(params.num_rows),
                             .block = kBlockGroupThreads,
                             .shared_bytes = histogram_bytes<typename Traits::Key>(Traits::kCount, Traits::kMass)};
  return launch(params.operator_name, threshold_kernel<kThreshold>, shape, stream, params, slice_size(params.vocab, 1));
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
