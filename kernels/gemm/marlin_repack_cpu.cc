// Repacking on the CPU, once a checkpoint: the words of the result are shared out over the threads.
#include "kernels/base/parallel.h"
#include "kernels/gemm/marlin_repack_params.h"

namespace sgl_kernel::cpu {

Status repack_for_marlin(const MarlinRepackParams& params, Stream) {
  constexpr int64_t kGrain = 1024;  // words that make up for waking a thread: some 20 µs
  parallel_for(params.size_k * params.size_n * params.num_bits / 32, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) params.result[index] = marlin_word(params, index);
  });
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
