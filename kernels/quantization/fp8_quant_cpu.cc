// FP8 quantization on the CPU: pieces of a tensor, or its tokens, are shared out over the threads.
#include <atomic>

#include "kernels/base/cpu_dtype_switch.h"
#include "kernels/base/parallel.h"
#include "kernels/quantization/fp8_quant_params.h"
#include "kernels/quantization/quantize_cpu.h"

namespace sgl_kernel::cpu {
namespace {

constexpr int64_t kGrain = 32768;  // elements that make up for waking a thread: some 10 µs

// Calls function(floats, first, count) for pieces of `size` elements.
template <class T, class Function>
void for_pieces(const T* input, int64_t size, Function function) {
  float floats[kFloatPiece];
  for (int64_t first = 0; first < size; first += kFloatPiece) {
    const int64_t count = std::min(kFloatPiece, size - first);
    to_floats(floats, input + first, count);
    function(floats, first, count);
  }
}

template <class T>
uint32_t amax_bits_of(const T* input, int64_t size) {
  uint32_t amax = 0;
  for_pieces(input, size,
             [&amax](const float* floats, int64_t, int64_t count) { amax = std::max(amax, amax_bits(floats, count)); });
  return amax;
}

template <class T>
void quantize(uint8_t* output, const T* input, float factor, int64_t size) {
  for_pieces(input, size, [&](const float* floats, int64_t first, int64_t count) {
    times_to_e4m3(output + first, floats, factor, count);
  });
}

float scale_of(uint32_t amax_bits) {
  if (amax_bits == 0) return 0.0f;
  const float scale = internal::float_of(amax_bits) / kE4M3Max;
  return scale < kSmallestScale ? kSmallestScale : scale;
}

float factor_of(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

template <class T>
void run(const TensorQuantParams& params) {
  const T* const input = static_cast<const T*>(params.input);
  if (params.partial_amaxes != nullptr) {
    std::atomic<uint32_t> amax{0};  // a maximum does not depend on the order
    parallel_for(params.num_elements, kGrain, [&](int64_t begin, int64_t end) {
      const uint32_t mine = amax_bits_of(input + begin, end - begin);
      uint32_t largest = amax.load();
      while (largest < mine && !amax.compare_exchange_weak(largest, mine)) {
      }
    });
    *params.scale = scale_of(amax.load());
  }
  const float factor = factor_of(*params.scale);
  parallel_for(params.num_elements, kGrain, [&](int64_t begin, int64_t end) {
    quantize(params.output + begin, input + begin, factor, end - begin);
  });
}

template <class T>
void run(const TokenQuantParams& params) {
  parallel_for(params.num_tokens, std::max<int64_t>(1, kGrain / params.token_size), [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const T* const input = static_cast<const T*>(params.input) + token * params.input_stride;
      const float scale = scale_of(amax_bits_of(input, params.token_size));
      params.scales[token] = scale;
      quantize(params.output + token * params.output_stride, input, factor_of(scale), params.token_size);
    }
  });
}

}  // namespace

Status quantize_tensor_fp8(const TensorQuantParams& params, Stream) {
  SGL_CPU_SWITCH_FLOAT(params.dtype, T, run<T>(params));
  return OkStatus();
}

Status quantize_tokens_fp8(const TokenQuantParams& params, Stream) {
  SGL_CPU_SWITCH_FLOAT(params.dtype, T, run<T>(params));
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
