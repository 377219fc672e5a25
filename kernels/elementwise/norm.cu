// The norms on every CUDA target.
//
// What bounds them: bytes. rmsnorm moves 2 and the fused form 4 elements for each element of a row; the arithmetic is a
// tenth of that time. So a row is read once, into registers, as 16-byte vectors:
//   few rows            a vector a thread: the latency of one load and one sum over the row.
//   many rows           two to five vectors a thread, of one row or of several, in blocks so small that many of them,
//                       each at another point of its rows, keep a multiprocessor's loads and stores going. Blocks start
//                       1.2 ns apart at best, so that short rows share one. A register too many costs a block of long
//                       rows its place, and a spilled one more than anything else here.
//   any rows            those that are not whole aligned vectors, or longer than 2048 of them: scalar, read twice.
//
// Measured on an H200, 2026-11-23, bf16, inputs beyond the L2 cache, rmsnorm / fused: rows of 4096, 16384 of them take
// 66.4 µs (4050 GB/s) / 130.9 µs (4100 GB/s), 128 2.1 / 2.6, one 1.3 / 1.5; 131072 rows of 512 take 65.0 / 130.9 (4130
// / 4100 GB/s), of 384 48.8 / 97.3 (4130 / 4140 GB/s), of 200 26.8 / 52.8 (3920 / 3970 GB/s), 221184 of 128 28.4 / 56.8
// (3990 GB/s), 65536 of 576 37.1 / 75.4 (4070 / 4010 GB/s), 16384 of 5120 81.1 / 163.4 (4140 / 4110 GB/s), 8192 of
// 10240 81.6 / 164.5 (4110 / 4080 GB/s), of 12288 98.2 / 200.1 (4100 / 4030 GB/s).
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
constexpr int kBlock = 128;       // threads of a block of several rows
constexpr int kShortLanes = 16;   // threads of a short row
constexpr int kShortRowsPerBlock = kBlock / kShortLanes;
constexpr int kMaxRowVectors = 2048;    // of a row that a block holds in registers
constexpr int kFewVectorsPerSm = 2048;  // up to which a vector a thread is faster than four, by measurement

// A thread's vectors of a row: `first`, and those `step` apart behind it.
struct Share {
  int first;
  int step;
  int num_vectors;

  __device__ __forceinline__ int vector(int i) const { return first + i * step; }
  __device__ __forceinline__ bool has(int i) const { return vector(i) < num_vectors; }
};

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

  // weight_of(i) has the weights of vector i.
  template <class WeightOf>
  __device__ __forceinline__ void write(const NormParams& params, int64_t row, const Share& share, float sum,
                                        const WeightOf& weight_of) const {
    const float scale = rsqrtf(sum / static_cast<float>(params.row_size) + params.eps);
    T* output = static_cast<T*>(params.output.data) + row * params.output.stride;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!share.has(i)) continue;
      const Vector weight = weight_of(i);
      Vector result;
#pragma unroll
      for (int j = 0; j < kVecSize<T>; ++j) {
        const float factor = to_float(weight[j]) + params.weight_offset;
        result[j] = from_float<T>(to_float(values_[i][j]) * scale * factor);
      }
      result.store(output + share.vector(i) * kVecSize<T>);
    }
  }

 private:
  Vector values_[kVectors];
  Vector residuals_[kAdd ? kVectors : 1];
};

template <class T>
__device__ __forceinline__ Vec<T, kVecSize<T>> load_weight(const NormParams& params, const Share& share, int i) {
  return Vec<T, kVecSize<T>>::load(static_cast<const T*>(params.weight) + share.vector(i) * kVecSize<T>);
}

template <class T, int kVectors>
__device__ __forceinline__ void load_weights(const NormParams& params, const Share& share,
                                             Vec<T, kVecSize<T>> (&weights)[kVectors]) {
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (share.has(i)) weights[i] = load_weight<T>(params, share, i);
  }
}

// totals[r] is the sum of sums[r] over the lanes of a row, which are the threads along x; see "one order" above. Rows
// of several warps come one a thread, and their warps' sums lie side by side in `scratch`.
template <bool kBlockIsRow, int kRows, int kVectors>
__device__ __forceinline__ void sum_over_lanes(float (&sums)[kRows][kVectors], float* scratch, float (&totals)[kRows]) {
  if (kBlockIsRow || blockDim.x >= kWarpSize) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) sums[r][i] = warp_reduce<Sum>(sums[r][i]);
    }
  } else {  // a vector a thread
    for (int offset = blockDim.x / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) sums[r][0] += __shfl_xor_sync(0xffffffffu, sums[r][0], offset);
    }
  }
  const int warps = blockDim.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  if (kRows > 1 || (!kBlockIsRow && warps <= 1)) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      // Three vectors are four, of which the last is 0.
      if constexpr (kVectors == 4) sums[r][1] += sums[r][3];
      if constexpr (kVectors >= 3) sums[r][0] += sums[r][2];
      if constexpr (kVectors >= 2) sums[r][0] += sums[r][1];
      totals[r] = sums[r][0];
    }
    return;
  }
  const int num_sums = warps * kVectors;
  float* const row_scratch = kBlockIsRow ? scratch : scratch + threadIdx.y * num_sums;
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) row_scratch[threadIdx.x / kWarpSize + i * warps] = sums[0][i];
  }
  __syncthreads();
  float sum = lane < num_sums ? row_scratch[lane] : 0.0f;
  if (kVectors > 1 && lane + kWarpSize < num_sums) sum += row_scratch[lane + kWarpSize];
  totals[0] = warp_reduce<Sum>(sum);
}

// The most threads of a block: what the widest row needs whose threads have kVectors vectors.
template <int kVectors>
inline constexpr int kRowBlock = kVectors > 2 ? kMaxRowVectors / 4 : kMaxBlock;

// The threads along x share a row. kRows is 0: a block is a row, which is known to every thread alike and so takes no
// registers. Else the threads along y have rows of their own, kRows each, blockDim.y apart.
template <class T, int kRows, int kVectors, bool kAdd>
__global__ void __launch_bounds__(kRowBlock<kVectors>, kSmThreads / kRowBlock<kVectors>)
    norm_rows_kernel(const __grid_constant__ NormParams params) {
  __shared__ float scratch[kMaxRowVectors / kWarpSize];
  wait_for_predecessor();
  release_successors();
  constexpr int kThreadRows = std::max(1, kRows);
  const auto row = [](int r) {
    if constexpr (kRows == 0) return static_cast<int64_t>(blockIdx.x);
    return static_cast<int64_t>(blockIdx.x) * (blockDim.y * kRows) + (threadIdx.y + r * blockDim.y);
  };
  const auto share = [&](int r) {
    const int num_vectors = static_cast<int>(params.row_size) / kVecSize<T>;
    return Share{static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x),
                 kRows == 0 || row(r) < params.num_rows ? num_vectors : 0};
  };
  // A few weights come beside the row, more after its sum: to hold both would leave fewer threads room on a
  // multiprocessor, or spill. Of three, which long rows have, each comes where it is used: room for three blocks of
  // 16 warps instead of two.
  constexpr bool kWeightsFirst = kVectors <= 2, kWeightsInTurn = kRows == 0 && kVectors == 3;
  RowVectors<T, kVectors, kAdd> rows[kThreadRows];
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) rows[r].load(params, row(r), share(r));
  Vec<T, kVecSize<T>> weights[kVectors];
  if constexpr (kWeightsFirst) load_weights<T>(params, share(0), weights);
  float sums[kThreadRows][kVectors], totals[kThreadRows];
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
    rows[r].add_and_square(params, row(r), share(r), sums[r]);
    rows[r].keep_packed();
  }
  sum_over_lanes<kRows == 0>(sums, scratch, totals);
  if constexpr (!kWeightsFirst && !kWeightsInTurn) load_weights<T>(params, share(0), weights);
  const auto weight_of = [&](int i) {
    if constexpr (kWeightsInTurn) {
      return load_weight<T>(params, share(0), i);
    } else {
      return weights[i];
    }
  };
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) rows[r].write(params, row(r), share(r), totals[r], weight_of);
}

// Short rows: sixteen threads share one, so that their lanes are full at more widths than a warp's, and kVectors loads
// of each are on their way.
template <class T, int kVectors, bool kAdd>
__global__ void __launch_bounds__(kBlock) norm_short_rows_kernel(const __grid_constant__ NormParams params) {
  release_successors();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kShortRowsPerBlock + threadIdx.x / kShortLanes;
  const int lane = threadIdx.x % kShortLanes;
  // In this form nvcc 13.0 starts all of the loads at once.
  const Share share = {lane, kShortLanes, row < params.num_rows ? static_cast<int>(params.row_size) / kVecSize<T> : 0};
  RowVectors<T, kVectors, kAdd> vectors;
  wait_for_predecessor();
  vectors.load(params, row, share);
  float sums[kVectors];
  vectors.add_and_square(params, row, share, sums);
  vectors.keep_packed();
  // In the order above: of each 32 vectors a thread has two.
  float totals[4] = {};
#pragma unroll
  for (int i = 0; i < kVectors; i += 2) {
    float both = sums[i];
    if (i + 1 < kVectors) both += sums[i + 1];
    totals[i / 2] = warp_reduce<Sum, kShortLanes>(both);
  }
  const float total = (totals[0] + totals[2]) + (totals[1] + totals[3]);
  Vec<T, kVecSize<T>> weights[kVectors];
  load_weights<T>(params, share, weights);
  vectors.write(params, row, share, total, [&](int i) { return weights[i]; });
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

template <class T, int kRows, int kVectors, bool kAdd>
Status run_rows(const NormParams& params, int lanes, Stream stream) {
  const int height = kRows == 0 ? 1 : std::max(1, kBlock / lanes);
  // Memory holds fewer rows than a grid may have blocks, even if each is but one vector.
  const int64_t rows_per_block = height * std::max(1, kRows);
  const LaunchShape shape = {.grid = static_cast<unsigned>((params.num_rows + rows_per_block - 1) / rows_per_block),
                             .block = dim3(static_cast<unsigned>(lanes), static_cast<unsigned>(height)),
                             .pdl = params.enable_pdl};
  return launch(params.operator_name, norm_rows_kernel<T, kRows, kVectors, kAdd>, shape, stream, params);
}

// A vector a thread, so that one row takes the time of one load and one sum.
template <class T, bool kAdd>
Status run_few_rows(const NormParams& params, int num_vectors, Stream stream) {
  const int warps = (num_vectors + kWarpSize - 1) / kWarpSize;
  const int lanes = warps == 1 ? power_of_2_at_least(num_vectors) : warps * kWarpSize;
  if (num_vectors > kMaxBlock) return run_rows<T, 0, 2, kAdd>(params, kMaxBlock, stream);
  if (lanes > kBlock / 2) return run_rows<T, 0, 1, kAdd>(params, lanes, stream);
  return run_rows<T, 1, 1, kAdd>(params, lanes, stream);
}

template <class T, int kVectors, bool kAdd>
Status run_short_rows(const NormParams& params, Stream stream) {
  const int64_t blocks = (params.num_rows + kShortRowsPerBlock - 1) / kShortRowsPerBlock;
  const LaunchShape shape = {.grid = static_cast<unsigned>(blocks), .block = kBlock, .pdl = params.enable_pdl};
  return launch(params.operator_name, norm_short_rows_kernel<T, kVectors, kAdd>, shape, stream, params);
}

// Two to five vectors of a row a thread; of the shortest rows one of each of three rows, or of two in the fused form,
// which reads two tensors.
template <class T, bool kAdd>
Status run_many_rows(const NormParams& params, int num_vectors, Stream stream) {
  if (num_vectors <= kShortLanes) {
    return run_rows<T, kAdd ? 2 : 3, 1, kAdd>(params, power_of_2_at_least(num_vectors), stream);
  }
  if (num_vectors <= 2 * kShortLanes) return run_short_rows<T, 2, kAdd>(params, stream);
  if (num_vectors <= 3 * kShortLanes) return run_short_rows<T, 3, kAdd>(params, stream);
  if (num_vectors <= 4 * kShortLanes) return run_short_rows<T, 4, kAdd>(params, stream);
  if (num_vectors <= 5 * kShortLanes) return run_short_rows<T, 5, kAdd>(params, stream);
  const int warp_vectors = (num_vectors + kWarpSize - 1) / kWarpSize;  // of a row, by 32
  if constexpr (!kAdd) {
    // Blocks of one warp would end sooner than new ones start.
    if (warp_vectors == 3) return run_rows<T, 1, 3, kAdd>(params, kWarpSize, stream);
    if (warp_vectors == 4) return run_rows<T, 1, 4, kAdd>(params, kWarpSize, stream);
  }
  // A multiprocessor has the registers for two blocks with four vectors a thread, or three of 16 warps with three.
  const bool three = warp_vectors == 3 || (!kAdd && warp_vectors > 32 && warp_vectors <= 48);
  if (three) return run_rows<T, 0, 3, kAdd>(params, (warp_vectors + 2) / 3 * kWarpSize, stream);
  return run_rows<T, 0, 4, kAdd>(params, (warp_vectors + 3) / 4 * kWarpSize, stream);
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
  if (vectors && num_vectors <= kMaxRowVectors) {
    const bool few = params.num_rows * num_vectors <= int64_t{kFewVectorsPerSm} * num_sms();
    return few ? run_few_rows<T, kAdd>(params, static_cast<int>(num_vectors), stream)
               : run_many_rows<T, kAdd>(params, static_cast<int>(num_vectors), stream);
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
