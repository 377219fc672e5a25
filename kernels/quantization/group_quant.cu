// Group quantization: memory-bound, 3 bytes moved for an element of 16 bits (5 with the fused activation). A thread
// takes sixteen neighbours of a token; a group is 1 to 8 neighbouring lanes, which share their maximum by shuffles. The
// grid has a thread for each sixteen, so that nothing but the addresses stands before the loads: of few tokens the time
// is that of one load, one chain of arithmetic and one store. Threads lie along the tokens, see device/row_grid.cuh, or
// where the f32 scales of neighbouring tokens lie side by side, along four of them in a warp.
//
// With masked_m, or where a grid cannot be so large, blocks stride over tokens and experts: with masked_m as many
// blocks as share out kMaskedBlocksPerSm, over the tokens that there are.
//
// Measured on an H200, 2026-11-23, bf16 to e4m3, groups of 128, inputs beyond the L2 cache: 16384 tokens of 4096 take
// 47.9 µs with rows of scales and with columns (4240 GB/s), of 7168 83.1 and 82.8 (4280, 4300), fused 2048 39.7 (4240);
// 1024 tokens of 4096 4.3, 128 1.5, fused 2048 1.7, one token 0.7.
#include <algorithm>
#include <limits>

#include "kernels/base/launch.h"
#include "kernels/device/dtype_switch.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/device/row_grid.cuh"
#include "kernels/quantization/expert_grid.cuh"
#include "kernels/quantization/group_quant_params.h"
#include "kernels/quantization/sixteen.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kLeastBlocksPerSm = 8;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Scale {
  float value;
  float inverse;
  uint32_t exponent;  // UE8M0
};

template <bool kInt8>
__device__ __forceinline__ Scale scale_of(const GroupQuantParams& params, uint32_t amax_bits) {
  constexpr int kLargest = kInt8 ? 127 : 448;
  const float amax = __uint_as_float(max(amax_bits, __float_as_uint(params.eps)));
  const float scale = over<kLargest>(amax);
  if (!params.scale_ue8m0) return {scale, under<kLargest>(amax), 0};
  // Up to the next power of two; 255 for infinity and NaN, both NaN in UE8M0.
  const uint32_t exponent = min((__float_as_uint(scale) + 0x7fffffu) >> 23, 255u);
  const uint32_t nan = 0x7fffffff;
  return {__uint_as_float(exponent == 255 ? nan : exponent << 23),
          __uint_as_float(exponent == 255 ? nan : (254 - exponent) << 23), exponent};
}

// A sixteen of a token: which one of the row's it is, and where it lies.
template <class T>
struct Place {
  const T* input;
  uint8_t* output;
  int64_t scale;
  int group;
  bool first_of_group;

  // A group is 2^lanes_log2 sixteens.
  static __device__ __forceinline__ Place of(const GroupQuantParams& params, int lanes_log2, int64_t expert,
                                             int64_t token, unsigned sixteen) {
    const int group = static_cast<int>(sixteen >> lanes_log2);
    return {static_cast<const T*>(params.input) + expert * params.input_expert_stride + token * params.input_stride +
                sixteen * kSixteen,
            params.output + expert * params.output_expert_stride + token * params.output_stride + sixteen * kSixteen,
            expert * params.scale_expert_stride + token * params.scale_stride +
                (params.packed_scales ? group >> 2 : group) * params.scale_group_stride,
            group, (sixteen & ((1u << lanes_log2) - 1)) == 0};
  }
};

template <class T>
__device__ __forceinline__ void write_scale(const GroupQuantParams& params, const Place<T>& place, const Scale& scale) {
  if (!params.packed_scales) {
    static_cast<float*>(params.scales)[place.scale] = scale.value;
    return;
  }
  uint8_t* word = static_cast<uint8_t*>(params.scales) + 4 * place.scale;
  word[place.group & 3] = static_cast<uint8_t>(scale.exponent);
  if ((place.group + 1) * params.group_size == params.token_size) {
    for (int i = (place.group & 3) + 1; i < 4; ++i) word[i] = 0;
  }
}

// The lanes of a group go here together. Nothing is stored if the sixteen is not `present`.
template <class T, bool kInt8, bool kFuse>
__device__ __forceinline__ void quantize(const GroupQuantParams& params, int lanes_log2, const Place<T>& place,
                                         bool present) {
  Sixteen<T> values;
  [[maybe_unused]] Sixteen<T> up;
  values.load(place.input);
  if constexpr (kFuse) up.load(place.input + params.token_size);
  if constexpr (kFuse) values.silu_and_mul(up);
  uint32_t amax = values.amax_bits();
  if (lanes_log2 > 2) amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, 4));
  if (lanes_log2 > 1) amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, 2));
  if (lanes_log2 > 0) amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, 1));
  const Scale scale = scale_of<kInt8>(params, amax);
  if (!present) return;
  uint4 result;
  if constexpr (kInt8) {
    result = scale.value < kInfinity ? times_to_int8(values, scale.inverse) : uint4{0, 0, 0, 0};
  } else {
    result = times_to_e4m3(values, scale.inverse);
  }
  *reinterpret_cast<uint4*>(place.output) = result;
  if (place.first_of_group) write_scale(params, place, scale);
}

__device__ __forceinline__ unsigned sixteen_of_thread() {
  return (blockIdx.x * blockDim.z + threadIdx.z) * blockDim.x + threadIdx.x;
}

// A thread for each sixteen. Without the least number of blocks ptxas keeps to 32 registers and is 1% slower.
template <class T, bool kInt8, bool kFuse>
__global__ void __launch_bounds__(kRowGridThreads, kLeastBlocksPerSm)
    quantize_groups_kernel(const __grid_constant__ GroupQuantParams params, int lanes_log2) {
  const unsigned sixteen = sixteen_of_thread();
  const int64_t token = blockIdx.y * blockDim.y + threadIdx.y;
  if (sixteen * kSixteen >= params.token_size || token >= params.num_tokens) return;
  const auto place = Place<T>::of(params, lanes_log2, blockIdx.z, token, sixteen);
  wait_for_predecessor(place.input);
  release_successors();
  quantize<T, kInt8, kFuse>(params, lanes_log2, place, true);
}

// A sixteen of a token at a time, striding over tokens and experts.
template <class T, bool kInt8, bool kFuse>
__global__ void __launch_bounds__(kRowGridThreads)
    quantize_groups_strided_kernel(const __grid_constant__ GroupQuantParams params, int lanes_log2) {
  wait_for_predecessor();
  release_successors();
  const unsigned sixteen = sixteen_of_thread();
  if (sixteen * kSixteen >= params.token_size) return;
  for (int64_t expert = blockIdx.z; expert < params.num_experts; expert += gridDim.z) {
    const int64_t num_tokens =
        params.masked_m == nullptr ? params.num_tokens : min(params.num_tokens, int64_t{params.masked_m[expert]});
    // All threads of a block go the same way, because lanes read from each other: those without a token load another's.
    for (int64_t first = blockIdx.y * blockDim.y; first < num_tokens; first += gridDim.y * blockDim.y) {
      const int64_t token = first + threadIdx.y;
      const auto place = Place<T>::of(params, lanes_log2, expert, min(token, num_tokens - 1), sixteen);
      quantize<T, kInt8, kFuse>(params, lanes_log2, place, token < num_tokens);
    }
  }
}

// A warp has eight sixteens of each of four tokens.
RowGrid column_grid(int64_t sixteens_per_token, int64_t num_tokens) {
  constexpr unsigned kWidth = 8;
  unsigned warps_along = kRowGridThreads / kWarpSize;
  while (warps_along > 1 && warps_along * kWidth > sixteens_per_token) warps_along /= 2;
  const unsigned width = warps_along * kWidth, height = kRowGridThreads / width;
  return {.grid = dim3(static_cast<unsigned>((sixteens_per_token + width - 1) / width),
                       static_cast<unsigned>(std::min(kMostGridY, (num_tokens + height - 1) / height))),
          .block = dim3(kWidth, height, warps_along)};
}

template <class T, bool kInt8, bool kFuse>
Status run(const GroupQuantParams& params, Stream stream) {
  int lanes_log2 = 0;
  while (kSixteen << lanes_log2 < params.group_size) ++lanes_log2;
  const int64_t sixteens = params.token_size / kSixteen;
  RowGrid shape = params.scale_stride == 1 && !params.packed_scales
                      ? column_grid(sixteens, params.num_tokens)
                      : row_grid(sixteens, params.num_tokens, /*rows_per_thread=*/1);
  spread_experts(shape, params.num_experts, params.masked_m != nullptr);
  const bool whole = params.masked_m == nullptr && shape.grid.z == params.num_experts &&
                     int64_t{shape.grid.y} * shape.block.y >= params.num_tokens;
  const auto kernel = whole ? quantize_groups_kernel<T, kInt8, kFuse> : quantize_groups_strided_kernel<T, kInt8, kFuse>;
  return launch(params.operator_name, kernel, {.grid = shape.grid, .block = shape.block, .pdl = true}, stream, params,
                lanes_log2);
}

}  // namespace

Status quantize_groups(const GroupQuantParams& params, Stream stream) {
  SGL_SWITCH_FLOAT(params.dtype, T, {
    if (params.to_int8) {
      return params.fuse_silu_and_mul ? run<T, true, true>(params, stream) : run<T, true, false>(params, stream);
    }
    return params.fuse_silu_and_mul ? run<T, false, true>(params, stream) : run<T, false, false>(params, stream);
  });
}

}  // namespace sgl_kernel::SGL_TARGET
