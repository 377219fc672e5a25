// Decoding of AWQ weights on the CPU: rows are shared out over the threads.
#include <algorithm>

#include "kernels/base/cpu_dtype_switch.h"
#include "kernels/base/parallel.h"
#include "kernels/quantization/awq_dequantize_params.h"

namespace sgl_kernel::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements that make up for waking a thread: some 10 µs

template <class T>
void decode_row(const AwqParams& params, int64_t row) {
  const int64_t words = params.words_per_row, group = row / params.group_size;
  const uint32_t* const weights = params.qweight + row * words;
  const uint32_t* const zeros = params.qzeros + group * words;
  const T* const scales = static_cast<const T*>(params.scales) + group * words * kAwqPerWord;
  T* const result = static_cast<T*>(params.result) + row * words * kAwqPerWord;
  for (int64_t word = 0; word < words; ++word) {
    for (int i = 0; i < kAwqPerWord; ++i) {
      const int weight = weights[word] >> awq_bit(i) & 15, zero = zeros[word] >> awq_bit(i) & 15;
      const int64_t at = word * kAwqPerWord + i;
      result[at] = static_cast<T>(static_cast<float>(weight - zero) * static_cast<float>(scales[at]));
    }
  }
}

template <class T>
void run(const AwqParams& params) {
  const int64_t grain = std::max<int64_t>(1, kGrain / (params.words_per_row * kAwqPerWord));
  parallel_for(params.num_rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) decode_row<T>(params, row);
  });
}

}  // namespace

Status decode_awq(const AwqParams& params, Stream) {
  if (params.dtype == DType::kF16) {
    run<Half>(params);
  } else {
    run<BFloat16>(params);
  }
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
