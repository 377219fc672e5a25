// ggml_mul_mat_vec for few rows, in all the tokens: a decode step's matrices, and the operators that make their input.
//
// A warp a row, a block 16 rows at a time, grid.x the tokens. Each block makes the whole input, 8 bits in shared
// memory: what it reads is in the caches, and a kernel for it alone would cost more. Bound by latency, of the
// instructions as well: a step's kernels run once each, so that every instruction that is not there saves its fetch,
// and nothing is unrolled that need not be. Hence a kernel of its own, with the dtype and the input known at compile
// time.
//
// For more rows, in all the tokens, ggml_vec_input() makes the input in memory, a block a token, for
// ggml_mul_mat_vec.cu.
//
// The lines of W and of the norm's weight are asked into the L2 cache before the predecessor ends: a hint, not a read.
//
// H200, 2026-11-23, one token, X as it is, weights out of memory, in a CUDA graph: Q4_1 576 x 576 in 2.0 µs, 3072 x 576
// in 2.4, 576 x 1536 in 2.8; Q4_0 1536 x 4096 in 4.8. Blocks of 8 or 32 warps make a token of SmolLM2-135M 0.5% or 6%
// slower.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/copy_async.cuh"
#include "kernels/device/dtype_switch.cuh"
#include "kernels/device/gate.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/quantization/ggml_params.h"
#include "kernels/quantization/ggml_vec_group.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kCacheLine = 128;
constexpr int kAlwaysAllowed = 47 << 10;  // bytes of dynamic shared memory; 48 with the static part

// Of the input in shared memory: bytes and scales, and what keeps what follows aligned.
constexpr int quantized_bytes(int groups) {
  return (groups * (kGroupSize + static_cast<int>(sizeof(ActivationScale))) + 15) / 16 * 16;
}

struct Rows {
  void* data;
  int64_t stride;  // elements

  template <class T>
  __device__ __forceinline__ T* row(int64_t index) const {
    return static_cast<T*>(data) + index * stride;
  }
};

struct RowParams {
  Rows result;
  Rows X;
  const uint8_t* W;
  int64_t rows;
  int num_groups;  // k / 32
  bool vectors;    // every row of X, of the residuals and the norm's weight is aligned to 16 bytes
  float eps;
  Rows residual;
  Rows residual_sum;
  const void* norm_weight;
};

template <class T>
__device__ __forceinline__ float rounded(float value) {
  return to_float(from_float<T>(value));
}

template <class T>
__device__ __forceinline__ void store_eight(T* row, int index, bool vectors, const float (&x)[8]) {
  constexpr int kSize = kVecSize<T>;
#pragma unroll
  for (int i = 0; i < 8; i += kSize) {
    Vec<T, kSize> vec;
#pragma unroll
    for (int j = 0; j < kSize; ++j) vec[j] = from_float<T>(x[i + j]);
    if (vectors) {
      vec.store(row + index + i);
    } else {
#pragma unroll
      for (int j = 0; j < kSize; ++j) row[index + i + j] = vec[j];
    }
  }
}

// Elements index .. index + 7 of what is multiplied, but for the norm.
template <class T, VecInput kInput>
__device__ __forceinline__ void load_input(const RowParams& params, int64_t token, int index, float (&x)[8]) {
  const T* row = params.X.row<const T>(token);
  load_eight<T>(row, index, params.vectors, x);
  if constexpr (kInput == VecInput::kSiluAndMul) {
    float up[8];
    load_eight<T>(row + params.num_groups * kGroupSize, index, params.vectors, up);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = rounded<T>(gate<T>(x[i], x[i]) * up[i]);
  }
}

// (X + residual) * norm_weight to `products`, each thread what it reads again itself, and X + residual to memory (one
// block of a token does). Returns the scale that is left to multiply by. The block's sum has an order that k alone
// decides: fewer warps than kWarps are enough where the others would have no elements.
template <class T>
__device__ __forceinline__ float add_and_weigh(const RowParams& params, int64_t token, int num_warps, float* products) {
  __shared__ float squares[kWarps];
  const int k = params.num_groups * kGroupSize;
  float sum = 0.0f;
#pragma unroll 1
  for (int index = threadIdx.x * 8; index < k; index += kThreads * 8) {
    float x[8], residual[8], weight[8];
    load_eight<T>(params.X.row<const T>(token), index, params.vectors, x);
    load_eight<T>(params.residual.row<const T>(token), index, params.vectors, residual);
    load_eight<T>(params.norm_weight, index, params.vectors, weight);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[i] = rounded<T>(x[i] + residual[i]);
      sum = fmaf(x[i], x[i], sum);
      weight[i] *= x[i];
    }
    store_eight(products, index, /*vectors=*/true, weight);
    if (blockIdx.y == 0) store_eight(params.residual_sum.row<T>(token), index, params.vectors, x);
  }
  sum = warp_reduce<Sum>(sum);
  if (threadIdx.x % kWarpSize == 0) squares[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp < num_warps) total += squares[warp];
  }
  return rsqrtf(total / static_cast<float>(k) + params.eps);
}

// Elements index .. index + 7 of what is multiplied. `products` and `scale` are add_and_weigh()'s.
template <class T, VecInput kInput>
__device__ __forceinline__ void load_made(const RowParams& params, int64_t token, const float* products, float scale,
                                          int index, float (&x)[8]) {
  if constexpr (kInput == VecInput::kAddRmsnorm) {
    load_eight<float>(products, index, /*vectors=*/true, x);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = rounded<T>(x[i] * scale);
  } else {
    load_input<T, kInput>(params, token, index, x);
  }
}

template <class Format, class T, VecInput kInput>
__global__ void __launch_bounds__(kThreads) ggml_mul_mat_row_kernel(const __grid_constant__ RowParams params) {
  using Block = typename Format::Block;
  constexpr int kGroupsPerBlock = Format::kGroupsPerBlock;
  // The quantized input, its scales, and for the norm the products that become it.
  extern __shared__ uint4 shared[];
  uint8_t* const quants = reinterpret_cast<uint8_t*>(shared);
  ActivationScale* const scales = reinterpret_cast<ActivationScale*>(quants + params.num_groups * kGroupSize);
  float* const products = reinterpret_cast<float*>(quants + quantized_bytes(params.num_groups));
  const int64_t token = blockIdx.x;
  const int lane = threadIdx.x % kWarpSize;
  int64_t row = int64_t{blockIdx.y} * kWarps + threadIdx.x / kWarpSize;
  const int64_t row_step = int64_t{gridDim.y} * kWarps;
  const int blocks_per_row = params.num_groups / kGroupsPerBlock;
  const Block* blocks = reinterpret_cast<const Block*>(params.W) + row * blocks_per_row;

  release_successors();
  const auto prefetch_row = [&](int64_t ahead) {
    if (row + ahead * row_step >= params.rows) return;
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(blocks + ahead * row_step * blocks_per_row);
#pragma unroll 1
    for (int at = lane * kCacheLine; at < blocks_per_row * static_cast<int>(sizeof(Block));
         at += kWarpSize * kCacheLine) {
      prefetch_to_l2(bytes + at);
    }
  };
  prefetch_row(0);
  if constexpr (kInput == VecInput::kAddRmsnorm) {
    const int bytes = params.num_groups * kGroupSize * static_cast<int>(sizeof(T));
#pragma unroll 1
    for (int at = threadIdx.x * kCacheLine; at < bytes; at += kThreads * kCacheLine) {
      prefetch_to_l2(static_cast<const uint8_t*>(params.norm_weight) + at);
    }
  }
  wait_for_predecessor();

  // The weights are loaded one step ahead: the first of them while the input is made.
  WeightGroup next;
  const auto load_weights = [&](int group) {
    Format::decode(blocks[group / kGroupsPerBlock], group % kGroupsPerBlock, next);
  };
  if (row < params.rows && lane < params.num_groups) load_weights(lane);

  float scale = 1.0f;
  if constexpr (kInput == VecInput::kAddRmsnorm) scale = add_and_weigh<T>(params, token, kWarps, products);
  // Four neighbouring lanes hold a group; whole warps take part.
  const int tasks = params.num_groups * 4;
#pragma unroll 1
  for (int task = threadIdx.x; task - lane < tasks; task += kThreads) {
    const bool present = task < tasks;
    float x[8] = {};
    if (present) load_made<T, kInput>(params, token, products, scale, task * 8, x);
    ActivationScale activation;
    const uint2 bytes = quantize_group(x, activation);
    if (!present) continue;
    const int group = task / 4, quarter = task % 4;
    *reinterpret_cast<uint2*>(quants + group * kGroupSize + half_at(group, quarter / 2) + quarter % 2 * 8) = bytes;
    if (quarter == 0) scales[group] = activation;
  }
  __syncthreads();

  const int half0 = half_at(lane, 0), half1 = half_at(lane, 1);
#pragma unroll 1
  while (row < params.rows) {
    prefetch_row(2);  // the next one is being loaded
    float sum = 0.0f;
#pragma unroll 1
    for (int group = lane; group < params.num_groups; group += kWarpSize) {
      const WeightGroup weights = next;
      const int after = group + kWarpSize;
      if (after < params.num_groups) {
        load_weights(after);
      } else if (row + row_step < params.rows) {
        blocks += row_step * blocks_per_row;
        load_weights(lane);
      }
      add_group<Format>(weights, load_group(quants + group * kGroupSize, half0, half1, scales[group]), sum);
    }
    sum = warp_reduce<Sum>(sum);
    if (lane == 0) params.result.row<T>(token)[row] = from_float<T>(sum);
    row += row_step;
  }
}

// The input alone, in a token's row of the result.
template <class T, VecInput kInput>
__global__ void __launch_bounds__(kThreads) ggml_vec_input_kernel(const __grid_constant__ RowParams params) {
  extern __shared__ uint4 shared[];
  float* const products = reinterpret_cast<float*>(shared);
  const int64_t token = blockIdx.x;
  const int k = params.num_groups * kGroupSize;
  wait_for_predecessor();
  release_successors();
  float scale = 1.0f;
  if constexpr (kInput == VecInput::kAddRmsnorm) {
    scale = add_and_weigh<T>(params, token, static_cast<int>(blockDim.x) / kWarpSize, products);
  }
#pragma unroll 1
  for (int index = threadIdx.x * 8; index < k; index += kThreads * 8) {
    float x[8];
    load_made<T, kInput>(params, token, products, scale, index, x);
    store_eight(params.result.row<T>(token), index, /*vectors=*/true, x);
  }
}

bool aligned(const TensorView& rows) { return activations_of(rows).vectors; }

template <class Format, class T, VecInput kInput>
Status launch_rows(const MatVecCall& call, const RowParams& params, Stream stream) {
  const auto kernel = ggml_mul_mat_row_kernel<Format, T, kInput>;
  constexpr int kProductBytes = kInput == VecInput::kAddRmsnorm ? kGroupSize * static_cast<int>(sizeof(float)) : 0;
  const int shared_bytes = quantized_bytes(params.num_groups) + params.num_groups * kProductBytes;
  if (shared_bytes > kAlwaysAllowed) SGL_RETURN_IF_ERROR(allow_shared_memory(call.operator_name, kernel, shared_bytes));
  // No more blocks, of all the tokens, than start at once: each makes the input.
  constexpr int kBlocksPerSm = 2;
  const int64_t most = std::max<int64_t>(1, int64_t{num_sms()} * kBlocksPerSm / call.X.size(0));
  const int64_t tiles = std::clamp<int64_t>((params.rows + kWarps - 1) / kWarps, 1, most);
  return launch(call.operator_name, kernel,
                {.grid = dim3(static_cast<unsigned>(call.X.size(0)), static_cast<unsigned>(tiles)),
                 .block = kThreads,
                 .shared_bytes = static_cast<size_t>(shared_bytes),
                 .pdl = true},
                stream, params);
}

template <class Format, class T>
Status launch_input(const MatVecCall& call, const RowParams& params, Stream stream) {
  switch (call.input) {
    case VecInput::kSiluAndMul:
      return launch_rows<Format, T, VecInput::kSiluAndMul>(call, params, stream);
    case VecInput::kAddRmsnorm:
      return launch_rows<Format, T, VecInput::kAddRmsnorm>(call, params, stream);
    default:
      return launch_rows<Format, T, VecInput::kAsItIs>(call, params, stream);
  }
}

template <class T, VecInput kInput>
Status launch_input_alone(const MatVecCall& call, const RowParams& params, Stream stream) {
  const auto kernel = ggml_vec_input_kernel<T, kInput>;
  const int shared_bytes =
      kInput == VecInput::kAddRmsnorm ? static_cast<int>(call.k) * static_cast<int>(sizeof(float)) : 0;
  if (shared_bytes > kAlwaysAllowed) SGL_RETURN_IF_ERROR(allow_shared_memory(call.operator_name, kernel, shared_bytes));
  const int warps = static_cast<int>(std::clamp<int64_t>((call.k / 8 + kWarpSize - 1) / kWarpSize, 1, kWarps));
  return launch(call.operator_name, kernel,
                {.grid = static_cast<unsigned>(call.X.size(0)),
                 .block = static_cast<unsigned>(warps * kWarpSize),
                 .shared_bytes = static_cast<size_t>(shared_bytes),
                 .pdl = true},
                stream, params);
}

template <class Format>
Status mul_mat_row(const MatVecCall& call, const RowParams& params, Stream stream) {
  SGL_SWITCH_FLOAT(call.X.dtype(), T, return (launch_input<Format, T>(call, params, stream)));
}

RowParams params_of(const MatVecCall& call, const TensorView& result) {
  const auto rows_of = [](const TensorView& tensor) { return Rows{tensor.data(), tensor.stride(0)}; };
  RowParams params = {.result = rows_of(result),
                      .X = rows_of(call.X),
                      .W = call.W.data<const uint8_t>(),
                      .rows = call.result.size(1),
                      .num_groups = static_cast<int>(call.k / kGroupSize),
                      .vectors = aligned(call.X)};
  if (call.input == VecInput::kAddRmsnorm) {
    params.eps = call.eps;
    params.residual = rows_of(call.residual);
    params.residual_sum = rows_of(call.residual_sum);
    params.norm_weight = call.norm_weight.data();
    params.vectors = params.vectors && aligned(call.residual) && aligned(call.residual_sum) &&
                     reinterpret_cast<uintptr_t>(params.norm_weight) % 16 == 0;
  }
  return params;
}

}  // namespace

Status ggml_mul_mat_row(const MatVecCall& call, Stream stream) {
  const RowParams params = params_of(call, call.result);
  SGL_SWITCH_GGML_TYPE(call.type, F, return mul_mat_row<F>(call, params, stream));
  return OkStatus();  // not reached: the type was checked
}

Status ggml_vec_input(const MatVecCall& call, const TensorView& made, Stream stream) {
  const RowParams params = params_of(call, made);
  SGL_SWITCH_FLOAT(call.X.dtype(), T, {
    return call.input == VecInput::kAddRmsnorm ? launch_input_alone<T, VecInput::kAddRmsnorm>(call, params, stream)
                                               : launch_input_alone<T, VecInput::kSiluAndMul>(call, params, stream);
  });
}

}  // namespace sgl_kernel::SGL_TARGET
