// Token sampling, portable: a block of 1024 threads for each sample reads its row from global memory in each pass (four
// or five; the L2 cache serves the later ones). Bound by memory at large batches, by one multiprocessor's share of it
// at small ones.
#include "kernels/base/launch.h"
#include "kernels/sampling/block_group.cuh"
#include "kernels/sampling/sample_row.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

template <bool kCount>
__global__ void __launch_bounds__(kBlockGroupThreads) sample_kernel(SampleParams params, int slice_size) {
  extern __shared__ __align__(16) unsigned char dynamic[];
  __shared__ RowShared shared;
  sample_row<BlockGroup, /*kResident=*/false, kCount, kBlockGroupThreads>(params, blockIdx.x, slice_size, dynamic,
                                                                          shared);
}

}  // namespace

Status sample_tokens(const SampleParams& params, Stream stream) {
  const auto kernel = params.has_top_k ? sample_kernel<true> : sample_kernel<false>;
  const LaunchShape shape = {.grid = static_cast<unsigned>(params.num_samples),
                             .block = kBlockGroupThreads,
                             .shared_bytes = histogram_bytes<ProbKey>(params.has_top_k, true)};
  return launch(params.operator_name, kernel, shape, stream, params, slice_size(params.vocab, 1));
}

}  // namespace sgl_kernel::SGL_TARGET
