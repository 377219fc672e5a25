// FP8 quantization with a scale for the tensor or for each token: memory-bound, 3 bytes moved for an element of 16 bits
// (5 where the tensor's scale has to be found first, less what the L2 cache still holds).
//
//   a token   A block holds it in registers, 16 or 32 elements a thread: read once, one maximum over the block,
//             written. Tokens of up to 1024 elements take a warp, four to a block. Longer than 32768 elements, or not
//             whole aligned sixteens: element by element, read twice.
//   a tensor  With its scale given, a sixteen a thread. Where it has to be found, up to 8192 elements (16384 where
//             there are no clusters) are a token to one block, up to 65536 a cluster of blocks holds in registers. Of
//             more, or not whole aligned sixteens, a first kernel of as many blocks as fit on the GPU leaves the
//             maximum of each block in the workspace, and a second, which overlaps the end of the first and loads its
//             first sixteens there, takes the maximum of those in every block. It goes backwards, so that it begins
//             with what the cache holds.
//
// Measured on an H200, 2026-11-23, bf16, inputs beyond the L2 cache, a scale a token: 16384 tokens of 4096 elements
// take 47.8 µs (4210 GB/s), 1024 4.6, 128 1.7, one 1.0. A tensor's scale given: of 16384x4096 47.6 µs (4230 GB/s), of
// 128x4096 1.6, of 4096 0.8; found: 77.2 µs (4350 GB/s with both reads), 2.9, 1.0, of 16x4096 1.9. Two launches that
// only load, hand on a word each and store take 2.5 µs of 128x4096.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/cluster.cuh"
#include "kernels/device/dtype_switch.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/quantization/fp8_quant_params.h"
#include "kernels/quantization/sixteen.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kMaxBlock = 1024;
constexpr int kWarpTokensPerBlock = 4;
constexpr int kManyTokensPerSm = 4;  // from here on a block does better with two sixteens a thread than with one
constexpr int kTensorBlock = 256;
constexpr int kClusterBlock = 512;
constexpr int64_t kOneBlockElements = kMaxBlock * kSixteen;  // of a tensor that is quantized like one token
constexpr int64_t kOneClusterElements = kMostClusterBlocks * kClusterBlock * kSixteen;

// As many as leave a thread registers for a sixteen.
template <class T>
constexpr int kTensorBlocksPerSm = sizeof(T) == 4 ? 4 : 8;

__device__ __forceinline__ float scale_of(uint32_t amax_bits) {
  if (amax_bits == 0) return 0.0f;
  const float scale = over<448>(__uint_as_float(amax_bits));  // if it is not normal, it is replaced
  return scale < kSmallestScale ? kSmallestScale : scale;
}

__device__ __forceinline__ float factor_of(float scale) { return scale == 0.0f ? 0.0f : __frcp_rn(scale); }

// The maximum over a row of threads of the block, blockDim.x of them: a warp, or (blockDim.y is 1) whole warps.
__device__ __forceinline__ uint32_t max_over_row(uint32_t value, uint32_t* scratch) {
  value = __reduce_max_sync(0xffffffffu, value);
  if (blockDim.x == kWarpSize) return value;
  const int lane = threadIdx.x % kWarpSize;
  if (lane == 0) scratch[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  return __reduce_max_sync(0xffffffffu, lane < blockDim.x / kWarpSize ? scratch[lane] : 0);
}

template <class T, int kSixteens>
__global__ void __launch_bounds__(kMaxBlock) quantize_tokens_kernel(const __grid_constant__ TokenQuantParams params) {
  __shared__ uint32_t scratch[kWarpSize];
  const int64_t token = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (token >= params.num_tokens) return;  // a whole warp
  const int num_sixteens = static_cast<int>(params.token_size) / kSixteen;
  const T* input = static_cast<const T*>(params.input) + token * params.input_stride;
  wait_for_predecessor(input);
  release_successors();
  Sixteen<T> values[kSixteens];
  uint32_t amax = 0;
#pragma unroll
  for (int i = 0; i < kSixteens; ++i) {
    const int at = threadIdx.x + i * blockDim.x;
    if (at < num_sixteens) values[i].load(input + at * kSixteen);
  }
#pragma unroll
  for (int i = 0; i < kSixteens; ++i) {
    if (threadIdx.x + i * blockDim.x < num_sixteens) amax = max(amax, values[i].amax_bits());
  }
  const float scale = scale_of(max_over_row(amax, scratch));
  const float factor = factor_of(scale);
  if (threadIdx.x == 0) params.scales[token] = scale;
  uint8_t* output = params.output + token * params.output_stride;
#pragma unroll
  for (int i = 0; i < kSixteens; ++i) {
    const int at = threadIdx.x + i * blockDim.x;
    if (at < num_sixteens) *reinterpret_cast<uint4*>(output + at * kSixteen) = times_to_e4m3(values[i], factor);
  }
}

template <class T>
__global__ void __launch_bounds__(kMaxBlock)
    quantize_any_tokens_kernel(const __grid_constant__ TokenQuantParams params) {
  __shared__ uint32_t scratch[kWarpSize];
  wait_for_predecessor();
  release_successors();
  for (int64_t token = blockIdx.x; token < params.num_tokens; token += gridDim.x) {
    const T* input = static_cast<const T*>(params.input) + token * params.input_stride;
    uint8_t* output = params.output + token * params.output_stride;
    uint32_t amax = 0;
    for (int64_t i = threadIdx.x; i < params.token_size; i += blockDim.x) {
      amax = max(amax, magnitude_bits(to_float(input[i])));
    }
    const float scale = scale_of(max_over_row(amax, scratch));
    const float factor = factor_of(scale);
    if (threadIdx.x == 0) params.scales[token] = scale;
    for (int64_t i = threadIdx.x; i < params.token_size; i += blockDim.x) {
      output[i] = to_e4m3(to_float(input[i]) * factor);
    }
    __syncthreads();
  }
}

// A tensor that the registers of a cluster hold, a sixteen a thread: read once.
template <class T>
__global__ void __launch_bounds__(kClusterBlock)
    quantize_tensor_in_cluster_kernel(const __grid_constant__ TensorQuantParams params) {
  __shared__ uint32_t scratch[kWarpSize];
  __shared__ uint32_t amaxes[kMostClusterBlocks];  // of the cluster's blocks, which are the grid's
  const int64_t at = static_cast<int64_t>(blockIdx.x * kClusterBlock + threadIdx.x) * kSixteen;
  const bool present = at < params.num_elements;
  const int lane = threadIdx.x % kWarpSize;
  const T* input = static_cast<const T*>(params.input) + at;
  publish_to_cluster();
  wait_for_predecessor(input);
  release_successors();
  Sixteen<T> values;
  if (present) values.load(input);
  uint32_t amax = max_over_row(present ? values.amax_bits() : 0, scratch);
  wait_for_cluster();  // all blocks have started
  if (threadIdx.x < gridDim.x) store_to_block(&amaxes[blockIdx.x], amax, threadIdx.x);
  publish_to_cluster();
  wait_for_cluster();
  amax = __reduce_max_sync(0xffffffffu, lane < gridDim.x ? amaxes[lane] : 0);
  const float scale = scale_of(amax);
  if (blockIdx.x == 0 && threadIdx.x == 0) *params.scale = scale;
  if (present) *reinterpret_cast<uint4*>(params.output + at) = times_to_e4m3(values, factor_of(scale));
}

// Both kernels of a tensor see it as units, sixteens or (kWide is false) single elements; the elements behind the last
// whole sixteen are left to the first threads of the grid.
struct Units {
  int64_t begin;  // of this thread
  int64_t step;
  int64_t count;
  int64_t tail;  // the first element behind the last unit

  template <bool kWide>
  static __device__ __forceinline__ Units of(int64_t num_elements) {
    const int64_t count = kWide ? num_elements / kSixteen : num_elements;
    return {static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, static_cast<int64_t>(gridDim.x) * blockDim.x,
            count, kWide ? count * kSixteen : num_elements};
  }
};

template <class T, bool kWide>
__global__ void __launch_bounds__(kTensorBlock, kTensorBlocksPerSm<T>)
    amax_of_tensor_kernel(const __grid_constant__ TensorQuantParams params) {
  __shared__ uint32_t scratch[kWarpSize];
  const T* input = static_cast<const T*>(params.input);
  const Units units = Units::of<kWide>(params.num_elements);
  wait_for_predecessor(input + units.begin * kSixteen);
  release_successors();
  uint32_t amax = 0;
  if constexpr (kWide) {
    for (int64_t unit = units.begin; unit < units.count; unit += units.step) {
      Sixteen<T> values;
      values.load(input + unit * kSixteen);
      amax = max(amax, values.amax_bits());
    }
    const int64_t at = units.tail + units.begin;
    if (at < params.num_elements) amax = max(amax, magnitude_bits(to_float(input[at])));
  } else {
    for (int64_t at = units.begin; at < units.count; at += units.step) {
      amax = max(amax, magnitude_bits(to_float(input[at])));
    }
  }
  amax = max_over_row(amax, scratch);
  if (threadIdx.x == 0) params.partial_amaxes[blockIdx.x] = amax;
}

template <class T, bool kWide>
__global__ void __launch_bounds__(kTensorBlock, kTensorBlocksPerSm<T>)
    quantize_tensor_kernel(const __grid_constant__ TensorQuantParams params, int num_partials) {
  __shared__ uint32_t scratch[kWarpSize];
  const T* input = static_cast<const T*>(params.input);
  const Units units = Units::of<kWide>(params.num_elements);
  const int64_t last = units.count - 1;  // backwards
  const bool is_static = params.partial_amaxes == nullptr;
  if (is_static) wait_for_predecessor();
  // Where the predecessor is the kernel above, it has waited for whoever wrote the input.
  [[maybe_unused]] Sixteen<T> next;
  if (kWide && units.begin < units.count) next.load(input + (last - units.begin) * kSixteen);
  if (!is_static) wait_for_predecessor();
  release_successors();
  float scale;
  if (is_static) {
    scale = *params.scale;
  } else {
    // Of a small tensor there are no more than these.
    uint32_t amax = threadIdx.x < num_partials ? params.partial_amaxes[threadIdx.x] : 0;
    for (int i = threadIdx.x + kTensorBlock; i < num_partials; i += kTensorBlock) {
      amax = max(amax, params.partial_amaxes[i]);
    }
    scale = scale_of(max_over_row(amax, scratch));
    if (blockIdx.x == 0 && threadIdx.x == 0) *params.scale = scale;
  }
  const float factor = factor_of(scale);
  if constexpr (kWide) {
    for (int64_t unit = units.begin; unit < units.count; unit += units.step) {
      *reinterpret_cast<uint4*>(params.output + (last - unit) * kSixteen) = times_to_e4m3(next, factor);
      if (unit + units.step < units.count) next.load(input + (last - unit - units.step) * kSixteen);
    }
    const int64_t at = units.tail + units.begin;
    if (at < params.num_elements) params.output[at] = to_e4m3(to_float(input[at]) * factor);
  } else {
    for (int64_t at = units.begin; at < units.count; at += units.step) {
      params.output[at] = to_e4m3(to_float(input[at]) * factor);
    }
  }
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class T, bool kWide>
Status run_tensor(const TensorQuantParams& params, Stream stream) {
  const char* name = "sgl_per_tensor_quant_fp8";
  const int64_t units = kWide ? std::max<int64_t>(1, params.num_elements / kSixteen) : params.num_elements;
  // With a given scale a unit a thread; else blocks that stay, because each needs all the maxima.
  const bool is_static = params.partial_amaxes == nullptr;
  const int64_t few = std::min(kMaxPartialAmaxes, int64_t{num_sms()} * kTensorBlocksPerSm<T>);
  const int64_t blocks = std::min((units + kTensorBlock - 1) / kTensorBlock, is_static ? int64_t{INT32_MAX} : few);
  const LaunchShape shape = {.grid = static_cast<unsigned>(blocks), .block = kTensorBlock, .pdl = true};
  if (!is_static) {
    SGL_RETURN_IF_ERROR(launch(name, amax_of_tensor_kernel<T, kWide>, shape, stream, params));
  }
  return launch(name, quantize_tensor_kernel<T, kWide>, shape, stream, params, blocks);
}

template <class T>
Status run_in_cluster(const TensorQuantParams& params, Stream stream) {
  int blocks = 1;
  while (blocks * kClusterBlock * kSixteen < params.num_elements) blocks *= 2;
  return launch("sgl_per_tensor_quant_fp8", quantize_tensor_in_cluster_kernel<T>,
                {.grid = static_cast<unsigned>(blocks), .block = kClusterBlock, .pdl = true, .cluster = blocks}, stream,
                params);
}

template <class T>
Status run_tokens(const TokenQuantParams& params, Stream stream) {
  const char* name = "sgl_per_token_quant_fp8";
  const int64_t sixteens = params.token_size / kSixteen;
  const bool wide = params.token_size % kSixteen == 0 && aligned(params.input) && aligned(params.output) &&
                    params.input_stride * sizeof(T) % 16 == 0 && params.output_stride % 16 == 0;
  if (!wide || sixteens > 2 * kMaxBlock) {
    const int64_t threads = std::min<int64_t>(kMaxBlock, (params.token_size + kWarpSize - 1) / kWarpSize * kWarpSize);
    const LaunchShape shape = {.grid = static_cast<unsigned>(std::min<int64_t>(params.num_tokens, INT32_MAX)),
                               .block = static_cast<unsigned>(threads),
                               .pdl = true};
    return launch(name, quantize_any_tokens_kernel<T>, shape, stream, params);
  }
  const bool few_tokens = params.num_tokens <= kManyTokensPerSm * num_sms();
  const bool pairs = sixteens > kMaxBlock || (!few_tokens && sixteens > kWarpSize);
  const int64_t threads = pairs ? (sixteens + 1) / 2 : sixteens;
  const unsigned width = static_cast<unsigned>((threads + kWarpSize - 1) / kWarpSize * kWarpSize);
  const unsigned height = width == kWarpSize ? kWarpTokensPerBlock : 1;
  // Tokens of 16 elements or more: memory holds fewer blocks of them than a grid may have.
  const LaunchShape shape = {.grid = static_cast<unsigned>((params.num_tokens + height - 1) / height),
                             .block = dim3(width, height),
                             .pdl = true};
  if (pairs) return launch(name, quantize_tokens_kernel<T, 2>, shape, stream, params);
  return launch(name, quantize_tokens_kernel<T, 1>, shape, stream, params);
}

}  // namespace

Status quantize_tensor_fp8(const TensorQuantParams& params, Stream stream) {
  SGL_SWITCH_FLOAT(params.dtype, T, {
    const bool wide = aligned(params.input) && aligned(params.output);
    const int64_t size = params.num_elements;
    const bool whole = wide && params.partial_amaxes != nullptr && size % kSixteen == 0;
    if constexpr (kTargetHasClusters) {
      if (whole && size > kClusterBlock * kSixteen && size <= kOneClusterElements) {
        return run_in_cluster<T>(params, stream);
      }
    }
    if (whole && size <= kOneBlockElements) {
      return run_tokens<T>({params.dtype, params.input, params.output, params.scale, 1, size, size, size}, stream);
    }
    return wide ? run_tensor<T, true>(params, stream) : run_tensor<T, false>(params, stream);
  });
}

Status quantize_tokens_fp8(const TokenQuantParams& params, Stream stream) {
  SGL_SWITCH_FLOAT(params.dtype, T, return run_tokens<T>(params, stream));
}

}  // namespace sgl_kernel::SGL_TARGET
