// Group quantization on the CPU: tokens are shared out over the threads.
#include "kernels/base/cpu_dtype_switch.h"
#include "kernels/base/parallel.h"
#include "kernels/quantization/group_quant_params.h"
#include "kernels/quantization/quantize_cpu.h"

namespace sgl_kernel::cpu {
namespace {

constexpr int64_t kGrain = 32768;  // elements that make up for waking a thread: some 10 µs

struct Scale {
  float value;
  float inverse;
  uint8_t exponent;  // UE8M0
};

Scale scale_of(const GroupQuantParams& params, uint32_t amax_bits) {
  const float amax = internal::float_of(std::max(amax_bits, internal::bits_of(params.eps)));
  const float scale = amax / params.largest();
  if (!params.scale_ue8m0) return {scale, params.largest() / amax, 0};
  // Up to the next power of two; 255 for infinity and NaN, both NaN in UE8M0.
  const uint32_t exponent = std::min((internal::bits_of(scale) + 0x7fffffu) >> 23, 255u);
  if (exponent == 255) return {std::nanf(""), std::nanf(""), 255};
  return {internal::float_of(exponent << 23), internal::float_of((254 - exponent) << 23),
          static_cast<uint8_t>(exponent)};
}

void write_scale(const GroupQuantParams& params, int64_t expert, int64_t token, int64_t group, const Scale& scale) {
  const int64_t at_token = expert * params.scale_expert_stride + token * params.scale_stride;
  if (!params.packed_scales) {
    static_cast<float*>(params.scales)[at_token + group * params.scale_group_stride] = scale.value;
    return;
  }
  uint8_t* const word = static_cast<uint8_t*>(params.scales) + 4 * (at_token + group / 4 * params.scale_group_stride);
  word[group % 4] = scale.exponent;
  if (group + 1 == params.num_groups()) std::fill(word + group % 4 + 1, word + 4, uint8_t{0});
}

void times_to_int8(uint8_t* to, const float* values, float factor, int64_t count) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the sum's last place is 1, and its low byte the rounded integer
  for (int64_t i = 0; i < count; ++i) {
    const float value = values[i] * factor;
    const float inside = std::min(std::max(value, -128.0f), 127.0f);
    const uint32_t rounded = internal::bits_of(inside + kRound);
    to[i] = value == value ? static_cast<uint8_t>(rounded) : 0;
  }
}

template <class T>
void quantize_token(const GroupQuantParams& params, int64_t expert, int64_t token) {
  const T* const input =
      static_cast<const T*>(params.input) + expert * params.input_expert_stride + token * params.input_stride;
  uint8_t* const output = params.output + expert * params.output_expert_stride + token * params.output_stride;
  float floats[kFloatPiece];
  for (int64_t first = 0; first < params.token_size; first += kFloatPiece) {
    const int64_t count = std::min(kFloatPiece, params.token_size - first);
    if (params.fuse_silu_and_mul) {
      silu_and_mul_to_floats(floats, input + first, input + params.token_size + first, count);
    } else {
      to_floats(floats, input + first, count);
    }
    for (int64_t i = 0; i < count; i += params.group_size) {
      const Scale scale = scale_of(params, amax_bits(floats + i, params.group_size));
      write_scale(params, expert, token, (first + i) / params.group_size, scale);
      if (params.to_int8) {
        times_to_int8(output + first + i, floats + i, scale.inverse, params.group_size);
      } else {
        times_to_e4m3(output + first + i, floats + i, scale.inverse, params.group_size);
      }
    }
  }
}

template <class T>
void run(const GroupQuantParams& params) {
  parallel_for(params.num_experts * params.num_tokens, std::max<int64_t>(1, kGrain / params.token_size),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t expert = i / params.num_tokens, token = i % params.num_tokens;
                   if (params.masked_m != nullptr && token >= params.masked_m[expert]) continue;
                   quantize_token<T>(params, expert, token);
                 }
               });
}

}  // namespace

Status quantize_groups(const GroupQuantParams& params, Stream) {
  SGL_CPU_SWITCH_FLOAT(params.dtype, T, run<T>(params));
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
