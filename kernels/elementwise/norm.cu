// The norms on every CUDA target.
//
// What bounds them: bytes. rmsnorm moves 2 and the fused form 4 elements for each element of a row; the arithmetic is
// a tenth of that time. So a row is read once, into registers, and three mappings keep enough loads in flight:
//   few rows     a block a row, one 16-byte vector a thread: the latency of one load and one block-wide sum.
//   many rows    a group of up to 32 lanes a row, up to 16 vectors a lane: no barrier, 8 KiB in flight a warp, and
//                rows shorter than a warp's 512 bytes share the warp.
//   any rows     rows that are not whole 16-byte vectors, or too long for registers: scalar, read twice.

#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/dtype_switch.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/elementwise/norm_params.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kVectorBytes = 16;
constexpr int kMaxBlock = 1024;
constexpr int kGroupBlock = 128;  // threads of a block in which each group of lanes has its own row

// The row of vectors that a thread group shares: vector i of a thread is number thread + i * group_size.
template <class T, int kVectors, bool kAdd, bool kBlockPerRow>
__global__ void __launch_bounds__(kBlockPerRow ? kMaxBlock / (kVectors > 1 ? 2 : 1) : kGroupBlock)
    norm_kernel(const NormParams params, int group_size) {
  using Vector = Vec<T, kVecSize<T>>;
  __shared__ float scratch[kWarpSize];
  wait_for_predecessor();

  const int thread = kBlockPerRow ? threadIdx.x : threadIdx.x % group_size;
  const int num_vectors = static_cast<int>(params.row_size) / kVecSize<T>;
  const int64_t first_row = kBlockPerRow ? blockIdx.x : (blockIdx.x * int64_t{kGroupBlock} + threadIdx.x) / group_size;
  const int64_t row_step = kBlockPerRow ? gridDim.x : int64_t{gridDim.x} * (kGroupBlock / group_size);
  // Groups of one warp leave the loop together, so that the shuffles have all lanes: the bound is rounded up to
  // whole warps and rows behind the last one load and store nothing.
  const int rows_per_warp = kBlockPerRow ? 1 : kWarpSize / group_size;
  const int64_t row_bound = (params.num_rows + rows_per_warp - 1) / rows_per_warp * rows_per_warp;

  for (int64_t row = first_row; row < row_bound; row += row_step) {
    const bool row_exists = row < params.num_rows;
    const T* input = static_cast<const T*>(params.input.data) + row * params.input.stride;
    T* output = static_cast<T*>(params.output.data) + row * params.output.stride;
    Vector values[kVectors];
    Vector residuals[kAdd ? kVectors : 1];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int v = thread + i * group_size;
      if (row_exists && v < num_vectors) {
        values[i] = Vector::load(input + v * kVecSize<T>);
        if constexpr (kAdd) {
          const T* residual = static_cast<const T*>(params.residual.data) + row * params.residual.stride;
          residuals[i] = Vector::load(residual + v * kVecSize<T>);
        }
      }
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int v = thread + i * group_size;
      if (row_exists && v < num_vectors) {
        if constexpr (kAdd) {
#pragma unroll
          for (int j = 0; j < kVecSize<T>; ++j) {
            values[i][j] = from_float<T>(to_float(values[i][j]) + to_float(residuals[i][j]));
          }
          T* residual = static_cast<T*>(params.residual.data) + row * params.residual.stride;
          values[i].store(residual + v * kVecSize<T>);
        }
#pragma unroll
        for (int j = 0; j < kVecSize<T>; ++j) {
          const float value = to_float(values[i][j]);
          sum += value * value;
        }
      }
    }
    if constexpr (kBlockPerRow) {
      sum = block_reduce<Sum>(sum, scratch);
    } else {
      for (int offset = group_size / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    const float scale = rsqrtf(sum / static_cast<float>(params.row_size) + params.eps);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int v = thread + i * group_size;
      if (row_exists && v < num_vectors) {
        const Vector weight = Vector::load(static_cast<const T*>(params.weight) + v * kVecSize<T>);
#pragma unroll
        for (int j = 0; j < kVecSize<T>; ++j) {
          values[i][j] = from_float<T>(to_float(values[i][j]) * scale * (to_float(weight[j]) + params.weight_offset));
        }
        values[i].store(output + v * kVecSize<T>);
      }
    }
    if constexpr (kBlockPerRow) __syncthreads();  // before the next row's sum reuses `scratch`
  }
  release_successors();
}

template <class T, bool kAdd>
__global__ void __launch_bounds__(kMaxBlock) norm_any_kernel(const NormParams params) {
  __shared__ float scratch[kWarpSize];
  wait_for_predecessor();
  const int64_t size = params.row_size;
  for (int64_t row = blockIdx.x; row < params.num_rows; row += gridDim.x) {
    const T* input = static_cast<const T*>(params.input.data) + row * params.input.stride;
    T* residual = static_cast<T*>(params.residual.data) + row * params.residual.stride;
    T* output = static_cast<T*>(params.output.data) + row * params.output.stride;
    float sum = 0.0f;
    for (int64_t d = threadIdx.x; d < size; d += blockDim.x) {
      T value = input[d];
      if constexpr (kAdd) residual[d] = value = from_float<T>(to_float(value) + to_float(residual[d]));
      sum += to_float(value) * to_float(value);
    }
    sum = block_reduce<Sum>(sum, scratch);
    const float scale = rsqrtf(sum / static_cast<float>(size) + params.eps);
    const T* normalized = kAdd ? residual : input;  // a thread reads what it wrote itself
    const T* weight = static_cast<const T*>(params.weight);
    for (int64_t d = threadIdx.x; d < size; d += blockDim.x) {
      output[d] = from_float<T>(to_float(normalized[d]) * scale * (to_float(weight[d]) + params.weight_offset));
    }
    __syncthreads();
  }
}

// The least power of 2 that is at least `value`, up to a warp.
int lanes_for(int64_t value) {
  int lanes = 1;
  while (lanes < value && lanes < kWarpSize) lanes *= 2;
  return lanes;
}

template <class T, int kVectors, bool kAdd>
Status launch_groups(const NormParams& params, int lanes, Stream stream) {
  const int64_t groups_per_block = kGroupBlock / lanes;
  constexpr int kBlocksPerSm = 16;  // enough to fill an SM at 128 threads a block
  const int64_t blocks = (params.num_rows + groups_per_block - 1) / groups_per_block;
  const LaunchShape shape{.grid = static_cast<unsigned>(std::min<int64_t>(blocks, int64_t{num_sms()} * kBlocksPerSm)),
                          .block = kGroupBlock,
                          .pdl = params.enable_pdl};
  return launch(params.operator_name, norm_kernel<T, kVectors, kAdd, false>, shape, stream, params, lanes);
}

template <class T, int kVectors, bool kAdd>
Status launch_blocks(const NormParams& params, int64_t num_vectors, Stream stream) {
  const int64_t threads = (num_vectors + kVectors - 1) / kVectors;
  const int block = static_cast<int>((threads + kWarpSize - 1) / kWarpSize * kWarpSize);
  const LaunchShape shape{.grid = static_cast<unsigned>(std::min<int64_t>(params.num_rows, INT32_MAX)),
                          .block = static_cast<unsigned>(block),
                          .pdl = params.enable_pdl};
  return launch(params.operator_name, norm_kernel<T, kVectors, kAdd, true>, shape, stream, params, block);
}

bool aligned(const NormRows& rows, int64_t element_bytes) {
  return reinterpret_cast<uintptr_t>(rows.data) % kVectorBytes == 0 && rows.stride * element_bytes % kVectorBytes == 0;
}

template <class T, bool kAdd>
Status run(const NormParams& params, Stream stream) {
  const int64_t num_vectors = params.row_size / kVecSize<T>;
  const bool vectors = params.row_size % kVecSize<T> == 0 && aligned(params.input, sizeof(T)) &&
                       aligned(params.output, sizeof(T)) && aligned(params.residual, sizeof(T)) &&
                       reinterpret_cast<uintptr_t>(params.weight) % kVectorBytes == 0;
  if (vectors && num_vectors <= kWarpSize) {
    return launch_groups<T, 1, kAdd>(params, lanes_for(num_vectors), stream);
  }
  // From about four rows an SM on, a warp a row has more bytes in flight than a block a row.
  const bool many_rows = params.num_rows >= 4 * int64_t{num_sms()};
  if (vectors && many_rows && num_vectors <= 4 * kWarpSize) return launch_groups<T, 4, kAdd>(params, kWarpSize, stream);
  if constexpr (!kAdd) {  // the fused form would need twice the registers
    if (vectors && many_rows && num_vectors <= 16 * kWarpSize) {
      return launch_groups<T, 16, kAdd>(params, kWarpSize, stream);
    }
  }
  if (vectors && num_vectors <= kMaxBlock) return launch_blocks<T, 1, kAdd>(params, num_vectors, stream);
  if (vectors && num_vectors <= 4 * kMaxBlock / 2) return launch_blocks<T, 4, kAdd>(params, num_vectors, stream);
  const int64_t threads = std::min<int64_t>(kMaxBlock, (params.row_size + kWarpSize - 1) / kWarpSize * kWarpSize);
  const LaunchShape shape{.grid = static_cast<unsigned>(std::min<int64_t>(params.num_rows, INT32_MAX)),
                          .block = static_cast<unsigned>(threads),
                          .pdl = params.enable_pdl};
  return launch(params.operator_name, norm_any_kernel<T, kAdd>, shape, stream, params);
}

}  // namespace

Status norm_rows(const NormParams& params, Stream stream) {
  SGL_SWITCH_FLOAT(params.dtype, T, {
    return params.residual.data != nullptr ? run<T, true>(params, stream) : run<T, false>(params, stream);
  });
}

}  // namespace sgl_kernel::SGL_TARGET
