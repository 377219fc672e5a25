// The norms on every CUDA target.
//
// What bounds them: bytes. rmsnorm moves 2 and the fused form 4 elements for each element of a row; the arithmetic is a
// tenth of that time. So a row is read once, into registers, as 16-byte vectors:
//   up to 32 vectors    a group of lanes a row, so that short rows share a warp. The groups take turns, and their next
//                       row's loads are on their way while this row is summed.
//   up to 2048 vectors  a block a row. Few rows: a vector a thread, the latency of one load and one block-wide sum.
//                       Many rows: four vectors a thread, in blocks so small that eight of them, each at another point
//                       of its row, keep a multiprocessor's loads and stores going. A spilled register costs more than
//                       anything else here.
//   any row             rows that are not whole aligned vectors, or longer: scalar, read twice.
//
// Measured on an H200, 2026-11-22, bf16, rows of 4096, inputs beyond the L2 cache, rmsnorm / fused: 16384 rows take
// 67.2 µs (4000 GB/s) / 132.1 µs (4060 GB/s), 1024 rows 6.2 / 10.0, 128 rows 2.2 / 2.7, one row 1.3 / 1.4. Blocks start
// 1.2 ns apart at best, which bounds many rows of 512 elements: 131072 take 159 µs in either form.
//
// The sum of a row has one order, whatever the number of rows, so that a row's result does not depend on its batch:
// first within each vector, then over the lanes of each 32 vectors, then over those, always halves against each other.

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
constexpr int kSmThreads = 1024;  // that an SM holds at once at the least: a thread may have 64 registers
constexpr int kGroupBlock = 128;  // threads of a block of groups
constexpr int kGroupBlocksPerSm = 8;
constexpr int kMaxRowVectors = 2048;  // of a row that a block holds in registers
constexpr int kManyRowsVectors = 4;   // of a thread, at many rows
constexpr int kFewRowsPerSm = 4;      // where 512 threads a row are faster than 128, by measurement

// A thread's vectors of a row: `first`, and those `step` apart behind it.
struct Share {
  int first;
  int step;
  int num_vectors;

  __device__ __forceinline__ int vector(int i) const { return first + i * step; }
  __device__ __forceinline__ bool has(int i) const { return vector(i) < num_vectors; }
};

// Has the compiler keep a vector as it is stored, not as the floats that it was rounded from: half the registers.
template <class Vector>
__device__ __forceinline__ void hold_packed(Vector& vector) {
  static_assert(sizeof(Vector) == kVectorBytes);
#pragma unroll
  for (int word = 0; word < kVectorBytes / 4; ++word) asm("" : "+r"(reinterpret_cast<uint32_t*>(&vector)[word]));
}

template <class T, int kVectors, bool kAdd>
class RowVectors {
 public:
  using Vector = Vec<T, kVecSize<T>>;

  __device__ __forceinline__ void load(const NormParams& params, int64_t row, const Share& share) {
    const T* input = static_cast<const T*>(params.input.data) + row * params.input.stride;
    const T* residual = static_cast<const T*>(params.residual.data) + row * params.residual.stride;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!share.has(i)) continue;
      values_[i] = Vector::load(input + share.vector(i) * kVecSize<T>);
      if constexpr (kAdd) residuals_[i] = Vector::load(residual + share.vector(i) * kVecSize<T>);
    }
  }

  // Adds the residual, if any, and writes the sum back to it. Then sums[i] is that of vector i's squares.
  __device__ __forceinline__ void add_and_square(const NormParams& params, int64_t row, const Share& share,
                                                 float (&sums)[kVectors]) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      sums[i] = 0.0f;
      if (!share.has(i)) continue;
      if constexpr (kAdd) {
#pragma unroll
        for (int j = 0; j < kVecSize<T>; ++j) {
          values_[i][j] = from_float<T>(to_float(values_[i][j]) + to_float(residuals_[i][j]));
        }
        T* residual = static_cast<T*>(params.residual.data) + row * params.residual.stride;
        values_[i].store(residual + share.vector(i) * kVecSize<T>);
        hold_packed(values_[i]);
      }
#pragma unroll
      for (int j = 0; j < kVecSize<T>; ++j) {
        const float value = to_float(values_[i][j]);
        sums[i] = fmaf(value, value, sums[i]);
      }
    }
  }

  __device__ __forceinline__ void keep_packed() {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) hold_packed(values_[i]);
  }

  __device__ __forceinline__ void write(const NormParams& params, int64_t row, const Share& share, float sum,
                                        const Vector (&weights)[kVectors]) const {
    const float scale = rsqrtf(sum / static_cast<float>(params.row_size) + params.eps);
    T* output = static_cast<T*>(params.output.data) + row * params.output.stride;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!share.has(i)) continue;
      Vector result;
#pragma unroll
      for (int j = 0; j < kVecSize<T>; ++j) {
        const float factor = to_float(weights[i][j]) + params.weight_offset;
        result[j] = from_float<T>(to_float(values_[i][j]) * scale * factor);
      }
      result.store(output + share.vector(i) * kVecSize<T>);
    }
  }

 private:
  Vector values_[kVectors];
  Vector residuals_[kAdd ? kVectors : 1];
};

template <class T, int kVectors>
__device__ __forceinline__ void load_weights(const NormParams& params, const Share& share,
                                             Vec<T, kVecSize<T>> (&weights)[kVectors]) {
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (!share.has(i)) continue;
    weights[i] = Vec<T, kVecSize<T>>::load(static_cast<const T*>(params.weight) + share.vector(i) * kVecSize<T>);
  }
}

// Groups of `lanes` neighbouring lanes, a power of 2, each with rows of its own.
template <class T, int kVectors, bool kAdd>
__global__ void __launch_bounds__(kGroupBlock, kGroupBlocksPerSm)
    norm_group_kernel(const __grid_constant__ NormParams params, int lanes) {
  wait_for_predecessor();
  release_successors();
  const int thread = blockIdx.x * kGroupBlock + threadIdx.x;
  const Share share = {thread % lanes, lanes, static_cast<int>(params.row_size) / kVecSize<T>};
  const int64_t row_step = static_cast<int64_t>(gridDim.x) * kGroupBlock / lanes;
  Vec<T, kVecSize<T>> weights[kVectors];
  load_weights<T>(params, share, weights);

  int64_t row = thread / lanes;
  RowVectors<T, kVectors, kAdd> next;
  if (row < params.num_rows) next.load(params, row, share);
  // The groups of a warp leave the loop together, so that the shuffles have all lanes: it ends with the warp's first
  // row.
  const int warp_offset = threadIdx.x % kWarpSize / lanes;
  for (; row - warp_offset < params.num_rows; row += row_step) {
    RowVectors<T, kVectors, kAdd> current = next;
    if (row + row_step < params.num_rows) next.load(params, row + row_step, share);
    float sums[kVectors] = {};
    if (row < params.num_rows) current.add_and_square(params, row, share, sums);
    float sum = sums[0];
#pragma unroll
    for (int i = 1; i < kVectors; ++i) sum += sums[i];
    for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (row < params.num_rows) current.write(params, row, share, sum, weights);
  }
}

// The sum over the block of what every thread has one or more of; see "one order" above. `scratch` holds 32 floats.
template <int kVectors>
__device__ __forceinline__ float sum_over_block(float (&sums)[kVectors], float* scratch) {
#pragma unroll
  for (int i = 0; i < kVectors; ++i) sums[i] = warp_reduce<Sum>(sums[i]);
#pragma unroll
  for (int half = kVectors / 2; half > 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  const int lane = threadIdx.x % kWarpSize;
  if (lane == 0) scratch[threadIdx.x / kWarpSize] = sums[0];
  __syncthreads();
  return warp_reduce<Sum>(lane < blockDim.x / kWarpSize ? scratch[lane] : 0.0f);
}

// The most threads of a block of norm_block_kernel.
template <int kVectors>
inline constexpr int kRowBlock = std::min(kMaxBlock, kMaxRowVectors / kVectors);

template <class T, int kVectors, bool kAdd>
__global__ void __launch_bounds__(kRowBlock<kVectors>, kSmThreads / kRowBlock<kVectors>)
    norm_block_kernel(const __grid_constant__ NormParams params) {
  __shared__ float scratch[kWarpSize];
  wait_for_predecessor();
  release_successors();
  const Share share = {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x),
                       static_cast<int>(params.row_size) / kVecSize<T>};
  // Four vectors of input, of residual and of weights are more than 64 registers hold.
  constexpr bool kWeightsLast = kAdd && kVectors == kManyRowsVectors;
  const int64_t row = blockIdx.x;
  RowVectors<T, kVectors, kAdd> current;
  current.load(params, row, share);
  Vec<T, kVecSize<T>> weights[kVectors];
  if constexpr (!kWeightsLast) load_weights<T>(params, share, weights);
  float sums[kVectors];
  current.add_and_square(params, row, share, sums);
  current.keep_packed();
  const float sum = sum_over_block(sums, scratch);
  if constexpr (kWeightsLast) load_weights<T>(params, share, weights);
  current.write(params, row, share, sum, weights);
}

template <class T, bool kAdd>
__global__ void __launch_bounds__(kMaxBlock) norm_any_kernel(const __grid_constant__ NormParams params) {
  __shared__ float scratch[kWarpSize];
  wait_for_predecessor();
  release_successors();
  const int64_t size = params.row_size;
  for (int64_t row = blockIdx.x; row < params.num_rows; row += gridDim.x) {
    const T* input = static_cast<const T*>(params.input.data) + row * params.input.stride;
    T* residual = static_cast<T*>(params.residual.data) + row * params.residual.stride;
    T* output = static_cast<T*>(params.output.data) + row * params.output.stride;
    float sum = 0.0f;
    for (int64_t d = threadIdx.x; d < size; d += blockDim.x) {
      T value = input[d];
      if constexpr (kAdd) residual[d] = value = from_float<T>(to_float(value) + to_float(residual[d]));
      sum = fmaf(to_float(value), to_float(value), sum);
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

int power_of_2_at_least(int64_t value) {
  int power = 1;
  while (power < value) power *= 2;
  return power;
}

template <class T, bool kAdd>
Status run_groups(const NormParams& params, int64_t num_vectors, Stream stream) {
  // Two vectors a thread where there are two: twice the bytes in flight, and half the shuffles. The fused form has two
  // tensors to read as it is.
  const int whole = power_of_2_at_least(num_vectors);
  const bool pairs = !kAdd && whole > 1;
  const int lanes = pairs ? whole / 2 : whole;
  const int64_t blocks = (params.num_rows + kGroupBlock / lanes - 1) / (kGroupBlock / lanes);
  const LaunchShape shape = {
      .grid = static_cast<unsigned>(std::min<int64_t>(blocks, int64_t{num_sms()} * kGroupBlocksPerSm)),
      .block = kGroupBlock,
      .pdl = params.enable_pdl};
  if constexpr (!kAdd) {
    if (pairs) return launch(params.operator_name, norm_group_kernel<T, 2, kAdd>, shape, stream, params, lanes);
  }
  return launch(params.operator_name, norm_group_kernel<T, 1, kAdd>, shape, stream, params, lanes);
}

template <class T, int kVectors, bool kAdd>
Status run_blocks(const NormParams& params, int warps, Stream stream) {
  // Rows of more than 512 bytes: memory holds fewer of them than a grid may have blocks.
  const LaunchShape shape = {.grid = static_cast<unsigned>(params.num_rows),
                             .block = static_cast<unsigned>(warps * kWarpSize),
                             .pdl = params.enable_pdl};
  return launch(params.operator_name, norm_block_kernel<T, kVectors, kAdd>, shape, stream, params);
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
  if (vectors && num_vectors <= kWarpSize) return run_groups<T, kAdd>(params, num_vectors, stream);
  if (vectors && num_vectors <= kMaxRowVectors) {
    const int warps = static_cast<int>((num_vectors + kWarpSize - 1) / kWarpSize);
    const bool few_rows = params.num_rows <= kFewRowsPerSm * num_sms();
    if (few_rows && num_vectors <= kMaxBlock) return run_blocks<T, 1, kAdd>(params, warps, stream);
    // A thread's vectors are 32 times a power of 2 apart: the pairing of the sum over the warps above.
    const int whole = power_of_2_at_least(warps);
    if (few_rows || whole < kManyRowsVectors) return run_blocks<T, 2, kAdd>(params, whole / 2, stream);
    return run_blocks<T, kManyRowsVectors, kAdd>(params, whole / kManyRowsVectors, stream);
  }
  const int64_t threads = std::min<int64_t>(kMaxBlock, (params.row_size + kWarpSize - 1) / kWarpSize * kWarpSize);
  const LaunchShape shape = {.grid = static_cast<unsigned>(std::min<int64_t>(params.num_rows, INT32_MAX)),
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
