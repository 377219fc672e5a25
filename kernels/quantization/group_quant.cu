// Group quantization: memory-bound, 3 bytes moved for an element of 16 bits (5 with the fused activation). A thread
// takes sixteen neighbours of one or two tokens, see device/row_grid.cuh; a group is 1 to 8 neighbouring lanes, which
// share their maximum by shuffles.
//
// With masked_m the grid has an expert's blocks along z, as many as share out kMaskedBlocksPerSm; they stride over the
// tokens that there are.
#include "kernels/base/launch.h"
#include "kernels/device/dtype_switch.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/device/row_grid.cuh"
#include "kernels/quantization/group_quant_params.h"
#include "kernels/quantization/sixteen.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int64_t kMaskedBlocksPerSm = 64;  // four times as many as run at once: experts differ in their tokens
constexpr int64_t kMostGridZ = 65535;       // CUDA's limit: the kernel loops over what lies beyond

struct Scale {
  float value;
  float inverse;
  uint32_t exponent;  // UE8M0
};

template <bool kInt8>
__device__ __forceinline__ Scale scale_of(const GroupQuantParams& params, uint32_t amax_bits) {
  constexpr float kLargest = kInt8 ? 127.0f : kE4M3Max;
  const float amax = __uint_as_float(max(amax_bits, __float_as_uint(params.eps)));
  const float scale = __fdiv_rn(amax, kLargest);
  if (!params.scale_ue8m0) return {scale, __fdiv_rn(kLargest, amax), 0};
  // Up to the next power of two; 255 for infinity and NaN, both NaN in UE8M0.
  const uint32_t exponent = min((__float_as_uint(scale) + 0x7fffffu) >> 23, 255u);
  const uint32_t nan = 0x7fffffff;
  return {__uint_as_float(exponent == 255 ? nan : exponent << 23),
          __uint_as_float(exponent == 255 ? nan : (254 - exponent) << 23), exponent};
}

__device__ __forceinline__ void write_scale(const GroupQuantParams& params, int64_t expert, int64_t token, int group,
                                            const Scale& scale) {
  const int64_t at_token = expert * params.scale_expert_stride + token * params.scale_stride;
  if (!params.packed_scales) {
    static_cast<float*>(params.scales)[at_token + group * params.scale_group_stride] = scale.value;
    return;
  }
  uint8_t* word = static_cast<uint8_t*>(params.scales) + 4 * (at_token + group / 4 * params.scale_group_stride);
  word[group % 4] = static_cast<uint8_t>(scale.exponent);
  if (group + 1 == params.num_groups()) {
    for (int i = group % 4 + 1; i < 4; ++i) word[i] = 0;
  }
}

template <class T, bool kInt8, bool kFuse, int kRows>
__global__ void __launch_bounds__(kRowGridThreads)
    quantize_groups_kernel(const __grid_constant__ GroupQuantParams params, int lanes) {
  wait_for_predecessor();
  release_successors();
  const int column = static_cast<int>(row_vec()) * kSixteen;
  // The row's end is a group's end, and a warp's row of threads holds whole groups: all lanes of a group leave here.
  if (column >= params.token_size) return;
  const int lane = (threadIdx.y * blockDim.x + threadIdx.x) % kWarpSize;
  const uint32_t group_lanes = ((1u << lanes) - 1) << (lane / lanes * lanes);
  for (int64_t expert = blockIdx.z; expert < params.num_experts; expert += gridDim.z) {
    const int64_t num_tokens =
        params.masked_m == nullptr ? params.num_tokens : min(params.num_tokens, int64_t{params.masked_m[expert]});
    const T* input = static_cast<const T*>(params.input) + expert * params.input_expert_stride + column;
    uint8_t* output = params.output + expert * params.output_expert_stride + column;
    for (RowRange<kRows> tokens(num_tokens); tokens.more(); tokens.advance()) {
      Sixteen<T> values[kRows], ups[kFuse ? kRows : 1];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (tokens.at(i) >= num_tokens) continue;
        values[i].load(input + tokens.at(i) * params.input_stride);
        if constexpr (kFuse) ups[i].load(input + tokens.at(i) * params.input_stride + params.token_size);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (tokens.at(i) >= num_tokens) continue;
        if constexpr (kFuse) values[i].silu_and_mul(ups[i]);
        uint32_t amax = values[i].amax_bits();
        for (int offset = lanes / 2; offset > 0; offset /= 2) {
          amax = max(amax, __shfl_xor_sync(group_lanes, amax, offset));
        }
        const Scale scale = scale_of<kInt8>(params, amax);
        if (lane % lanes == 0) write_scale(params, expert, tokens.at(i), column / params.group_size, scale);
        *reinterpret_cast<uint4*>(output + tokens.at(i) * params.output_stride) =
            kInt8 ? times_to_int8(values[i], scale.inverse) : times_to_e4m3(values[i], scale.inverse);
      }
    }
  }
}

template <class T, bool kInt8, bool kFuse, int kRows>
Status launch_groups(const GroupQuantParams& params, Stream stream) {
  RowGrid shape = row_grid(params.token_size / kSixteen, params.num_tokens, kRows);
  shape.grid.z = static_cast<unsigned>(std::min(params.num_experts, kMostGridZ));
  if (params.masked_m != nullptr) {
    const int64_t share = num_sms() * kMaskedBlocksPerSm / (int64_t{shape.grid.x} * shape.grid.z);
    shape.grid.y = static_cast<unsigned>(std::min<int64_t>(shape.grid.y, std::max<int64_t>(1, share)));
  }
  return launch(params.operator_name, quantize_groups_kernel<T, kInt8, kFuse, kRows>,
                {.grid = shape.grid, .block = shape.block, .pdl = true}, stream, params, params.group_size / kSixteen);
}

template <class T, bool kInt8, bool kFuse>
Status run(const GroupQuantParams& params, Stream stream) {
  const int64_t sixteens = params.num_experts * params.num_tokens * (params.token_size / kSixteen);
  if (sixteens < kManyVecs / 2) return launch_groups<T, kInt8, kFuse, 1>(params, stream);
  return launch_groups<T, kInt8, kFuse, 2>(params, stream);
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
