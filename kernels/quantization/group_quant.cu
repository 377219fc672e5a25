// Group quantization: memory-bound, 3 bytes moved for an element of 16 bits (5 with the fused activation). A thread
// takes sixteen neighbours of one to four tokens that follow each other, see device/row_grid.cuh; a group is 1 to 8
// neighbouring lanes, which share their maximum by shuffles. Where a group's scales lie side by side, a thread stores
// four at once.
//
// With masked_m the grid has an expert's blocks along z, as many as share out kMaskedBlocksPerSm; they stride over the
// tokens that there are.
//
// Measured on an H200, 2026-11-23, bf16 to e4m3, groups of 128, inputs beyond the L2 cache: 16384 tokens of 4096 take
// 49.7 µs with rows of scales (4090 GB/s) and 49.8 with columns (4080), of 7168 85.1 and 84.7 (4200), fused 2048 40.7
// (4120); 128 tokens of 4096 2.2, fused 2048 2.5.
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
  if (!params.scale_ue8m0) return {scale, __fdiv_rn(kLargest, amax), 0};
  // Up to the next power of two; 255 for infinity and NaN, both NaN in UE8M0.
  const uint32_t exponent = min((__float_as_uint(scale) + 0x7fffffu) >> 23, 255u);
  const uint32_t nan = 0x7fffffff;
  return {__uint_as_float(exponent == 255 ? nan : exponent << 23),
          __uint_as_float(exponent == 255 ? nan : (254 - exponent) << 23), exponent};
}

// The scales of kRows neighbouring tokens that lie side by side: those of the first `count` are stored, in one vector
// if they are all and aligned.
template <int kRows>
__device__ __forceinline__ void write_column(float* to, const Vec<float, kRows>& scales, int64_t count) {
  if (count >= kRows && reinterpret_cast<uintptr_t>(to) % sizeof(scales) == 0) {
    scales.store(to);
    return;
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (i < count) to[i] = scales[i];
  }
}

// `at` is that of the token's first group.
__device__ __forceinline__ void write_scale(const GroupQuantParams& params, int64_t at, int group, const Scale& scale) {
  if (!params.packed_scales) {
    static_cast<float*>(params.scales)[at + group * params.scale_group_stride] = scale.value;
    return;
  }
  uint8_t* word = static_cast<uint8_t*>(params.scales) + 4 * (at + (group >> 2) * params.scale_group_stride);
  word[group & 3] = static_cast<uint8_t>(scale.exponent);
  if ((group + 1) * params.group_size == params.token_size) {
    for (int i = (group & 3) + 1; i < 4; ++i) word[i] = 0;
  }
}

// A group is 2^lanes_log2 lanes.
template <class T, bool kInt8, bool kFuse, int kRows>
__global__ void __launch_bounds__(kRowGridThreads)
    quantize_groups_kernel(const __grid_constant__ GroupQuantParams params, int lanes_log2) {
  wait_for_predecessor();
  release_successors();
  const int sixteen = blockIdx.x * blockDim.x + threadIdx.x;
  const bool in_row = sixteen * kSixteen < params.token_size;
  const int column = in_row ? sixteen * kSixteen : 0;
  const bool columns = kRows > 1 && !params.packed_scales && params.scale_stride == 1;
  const int group = sixteen >> lanes_log2, in_group = sixteen & ((1 << lanes_log2) - 1);
  for (int64_t expert = blockIdx.z; expert < params.num_experts; expert += gridDim.z) {
    const int64_t num_tokens =
        params.masked_m == nullptr ? params.num_tokens : min(params.num_tokens, int64_t{params.masked_m[expert]});
    const T* input = static_cast<const T*>(params.input) + expert * params.input_expert_stride + column;
    uint8_t* output = params.output + expert * params.output_expert_stride + column;
    // All threads of a block go the same way, because lanes read from each other: those without work of their own load
    // what others load, and store nothing.
    const int block_tokens = blockDim.y * kRows;
    for (int64_t first = int64_t{blockIdx.y} * block_tokens; first < num_tokens;
         first += int64_t{gridDim.y} * block_tokens) {
      Vec<float, kRows> scales;
      Sixteen<T> values[kRows], ups[kFuse ? kRows : 1];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int64_t token = min(first + threadIdx.y * kRows + i, num_tokens - 1);
        values[i].load(input + token * params.input_stride);
        if constexpr (kFuse) ups[i].load(input + token * params.input_stride + params.token_size);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if constexpr (kFuse) values[i].silu_and_mul(ups[i]);
        uint32_t amax = values[i].amax_bits();
        if (lanes_log2 > 2) amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, 4));
        if (lanes_log2 > 1) amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, 2));
        if (lanes_log2 > 0) amax = max(amax, __shfl_xor_sync(0xffffffffu, amax, 1));
        const Scale scale = scale_of<kInt8>(params, amax);
        const uint4 result = kInt8 ? times_to_int8(values[i], scale.inverse) : times_to_e4m3(values[i], scale.inverse);
        const int64_t token = first + threadIdx.y * kRows + i;
        if (!in_row || token >= num_tokens) continue;
        *reinterpret_cast<uint4*>(output + token * params.output_stride) = result;
        scales[i] = scale.value;
        if (in_group == 0 && !columns) {
          write_scale(params, expert * params.scale_expert_stride + token * params.scale_stride, group, scale);
        }
      }
      if (columns && in_row && in_group == 0) {
        const int64_t token = first + threadIdx.y * kRows;
        const int64_t at = expert * params.scale_expert_stride + group * params.scale_group_stride + token;
        write_column(static_cast<float*>(params.scales) + at, scales, num_tokens - token);
      }
    }
  }
}

template <class T, bool kInt8, bool kFuse, int kRows>
Status launch_groups(const GroupQuantParams& params, Stream stream) {
  int lanes_log2 = 0;
  while (kSixteen << lanes_log2 < params.group_size) ++lanes_log2;
  RowGrid shape = row_grid(params.token_size / kSixteen, params.num_tokens, kRows);
  spread_experts(shape, params.num_experts, params.masked_m != nullptr);
  return launch(params.operator_name, quantize_groups_kernel<T, kInt8, kFuse, kRows>,
                {.grid = shape.grid, .block = shape.block, .pdl = true}, stream, params, lanes_log2);
}

template <class T, bool kInt8, bool kFuse>
Status run(const GroupQuantParams& params, Stream stream) {
  constexpr int kRows = kFuse || sizeof(T) == 4 ? 2 : 4;  // what 64 bytes of loads and 96 registers allow
  const int64_t sixteens = params.num_experts * params.num_tokens * (params.token_size / kSixteen);
  if (sixteens < kManyVecs / 2) return launch_groups<T, kInt8, kFuse, 1>(params, stream);
  return launch_groups<T, kInt8, kFuse, kRows>(params, stream);
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
