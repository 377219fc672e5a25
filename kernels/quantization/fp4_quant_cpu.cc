// NVFP4 quantization on the CPU: the rows of an expert are shared out over the threads.
#include "kernels/base/parallel.h"
#include "kernels/quantization/fp4_quant_params.h"
#include "kernels/quantization/quantize_cpu.h"

namespace sgl_kernel::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements that make up for waking a thread: some 10 µs

// value * factor, rounded to nearest even, saturated, with the sign of value; the magnitude of NaN is 0. The codes of
// the magnitudes 0, 0.5, … 6 are 0 … 7, at distances of 0.5 up to 2, of 1 up to 4, then of 2: the least of three
// roundings to an integer is the right one, each done by adding 2^23.
uint8_t times_to_e2m1(float value, float factor) {
  constexpr float kRound = 8388608.0f;  // 2^23
  const float product = std::fabs(value) * factor;
  const float inside = product < kFp4Max ? product : kFp4Max;
  const float magnitude = product == product ? inside : 0.0f;
  const float fine = magnitude * 2.0f + kRound, middle = magnitude + (kRound + 2.0f);
  const float coarse = magnitude * 0.5f + (kRound + 4.0f);
  const uint32_t code = internal::bits_of(std::min(std::min(fine, middle), coarse));
  return static_cast<uint8_t>((code & 7) | (internal::bits_of(value) >> 28 & 8));
}

// Writes 16 values; returns their scale.
uint8_t quantize_block(uint8_t* output, const float* values, float global_scale) {
  const float amax = internal::float_of(amax_bits(values, kFp4Block));
  const Float8E4M3 scale(global_scale * (amax * (1.0f / kFp4Max)));
  const float wide = static_cast<float>(scale);
  const float inverse = wide == 0.0f ? 0.0f : 1.0f / (wide * (1.0f / global_scale));
  uint8_t codes[kFp4Block];
  for (int i = 0; i < kFp4Block; ++i) codes[i] = times_to_e2m1(values[i], inverse);
  for (int i = 0; i < kFp4Block; i += 2) output[i / 2] = static_cast<uint8_t>(codes[i] | codes[i + 1] << 4);
  return scale.bits;
}

// `scales` are those of the row's expert, where it is row `in_expert`.
template <class T>
void quantize_row(const Fp4QuantParams& params, int64_t row, int64_t in_expert, float global_scale, uint8_t* scales) {
  const T* const input = static_cast<const T*>(params.input) + row * params.input_stride;
  uint8_t* const output = params.output + row * params.output_stride;
  for (int block = 0; block < params.num_blocks; ++block) {
    const T* const from = input + int64_t{block} * kFp4Block;
    float values[kFp4Block];
    if (params.fuse_silu_and_mul) {
      silu_and_mul_to_floats(values, from, from + int64_t{params.num_blocks} * kFp4Block, kFp4Block);
    } else {
      to_floats(values, from, kFp4Block);
    }
    scales[params.scale_at(in_expert, block)] =
        quantize_block(output + int64_t{block} * (kFp4Block / 2), values, global_scale);
  }
  for (int block = params.num_blocks; block < params.padded_blocks; ++block) {
    scales[params.scale_at(in_expert, block)] = 0;
  }
}

// Rows `first` … `first` + `count` - 1, which are one expert's.
template <class T>
void quantize_rows(const Fp4QuantParams& params, int64_t first, int64_t count, float global_scale, uint8_t* scales) {
  const int64_t grain = std::max<int64_t>(1, kGrain / (int64_t{params.num_blocks} * kFp4Block));
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) quantize_row<T>(params, first + i, i, global_scale, scales);
  });
}

template <class T>
Status run(const Fp4QuantParams& params) {
  if (params.offsets != nullptr) {
    for (int expert = 0; expert < params.num_experts; ++expert) {
      const int64_t first = params.offsets[expert];
      uint8_t* const scales = params.scales + int64_t{params.scale_offsets[expert]} * params.padded_blocks;
      quantize_rows<T>(params, first, params.offsets[expert + 1] - first, params.global_scales[expert], scales);
    }
    return OkStatus();
  }
  const int64_t group_bytes = int64_t{params.num_scale_rows} * params.padded_blocks;
  for (int64_t group = 0; group < params.num_groups; ++group) {
    uint8_t* const scales = params.scales + group * group_bytes;
    int64_t count = params.num_rows;
    if (params.mask != nullptr) {
      count = std::clamp<int64_t>(params.mask[group], 0, count);
    } else {
      std::fill(scales, scales + group_bytes, uint8_t{0});  // for what fills up a tile
    }
    quantize_rows<T>(params, group * params.num_rows, count, params.global_scales[group], scales);
  }
  return OkStatus();
}

}  // namespace

Status quantize_fp4(const Fp4QuantParams& params, Stream) {
  return params.dtype == DType::kF16 ? run<Half>(params) : run<BFloat16>(params);
}

}  // namespace sgl_kernel::cpu
