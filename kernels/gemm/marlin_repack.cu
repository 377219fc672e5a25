// Repacking for Marlin: a thread makes a word of the result, so that writes are coalesced; the scattered reads of a
// tile's numbers hit the same sectors from the lanes of a warp. It runs once, when a checkpoint is loaded.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/gemm/marlin_repack_params.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // threads go on to further words beyond

__global__ void __launch_bounds__(kThreads)
    marlin_repack_kernel(const __grid_constant__ MarlinRepackParams params, int64_t num_words) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; index < num_words; index += step) {
    params.result[index] = marlin_word(params, index);
  }
}

}  // namespace

Status repack_for_marlin(const MarlinRepackParams& params, Stream stream) {
  const int64_t num_words = params.size_k * params.size_n * params.num_bits / 32;
  const int64_t blocks = std::min((num_words + kThreads - 1) / kThreads, kMaxBlocks);
  return launch(params.operator_name, marlin_repack_kernel, {.grid = static_cast<unsigned>(blocks), .block = kThreads},
                stream, params, num_words);
}

}  // namespace sgl_kernel::SGL_TARGET
