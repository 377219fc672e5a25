// Repacking on the CPU, once a checkpoint: the words of the result are shared out over the threads.
#include <string>

#include "kernels/base/parallel.h"
#include "kernels/gemm/marlin_repack_params.h"

namespace sgl_kernel::cpu {

Status repack_for_marlin(const MarlinRepackParams& params, Stream) {
  for (int64_t k = 0; params.perm != nullptr && k < params.size_k; ++k) {
    if (params.perm[k] >= 0 && params.perm[k] < params.size_k) continue;
    return InvalidArgument(std::string(params.operator_name) + ": perm[" + std::to_string(k) + "] is " +
                           std::to_string(params.perm[k]) + ", expected at least 0 and less than size_k");
  }
  constexpr int64_t kGrain = 1024;  // words that make up for waking a thread: some 20 µs
  parallel_for(params.size_k * params.size_n * params.num_bits / 32, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) params.result[index] = marlin_word(params, index);
  });
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
