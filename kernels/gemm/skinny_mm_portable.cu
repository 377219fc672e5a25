// Skinny bf16 products by the warp-wide matrix instruction of sm_80.
//
// Grid: x takes 8 or 16 columns of the output (rows of B), y takes 16 rows. The 16 warps of a block share out K in
// turns of 32 numbers, read both operands straight into fragments, and add up in shared memory in the order of the
// warps. Bound by reading B, once for each 16 rows: of many more rows a tiled product is faster. Measured on
// an H200, 2026-11-23, K = 7168, 2112 columns: 11.3 µs for a row, 13.6 for 16.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/gemm/skinny_mm_portable.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kRows = 16, kColumns = 8;  // of a fragment
constexpr int kWarps = 16;
constexpr int kChunk = 8;                   // numbers of K that a thread takes of a row: 16 bytes
constexpr int kTurn = 4 * kChunk * kWarps;  // numbers of K that the block takes: four threads have a row of a fragment
constexpr int kAhead = 4;                   // turns whose loads are on their way at a time

// The chunk from k on of a row, zeros behind its end; row may be null, for zeros.
template <bool kAligned>
__device__ __forceinline__ uint4 load_chunk(const uint16_t* row, int64_t k, int64_t end) {
  uint4 chunk = {0, 0, 0, 0};
  if (row == nullptr || k >= end) return chunk;
  if constexpr (kAligned) {
    chunk = *reinterpret_cast<const uint4*>(row + k);
  } else {
    uint32_t words[4] = {};
    for (int i = 0; i < kChunk; ++i) {
      if (k + i < end) words[i / 2] |= static_cast<uint32_t>(row[k + i]) << (i % 2 * 16);
    }
    chunk = {words[0], words[1], words[2], words[3]};
  }
  return chunk;
}

template <int kColumnBlocks, bool kAligned, class Output>
__global__ void __launch_bounds__(kWarps * 32, 1) skinny_mm_kernel(const __grid_constant__ SkinnyMmParams params) {
  __shared__ float partial[kWarps][kColumnBlocks][4][32];  // [..][element of the fragment][lane]
  wait_for_predecessor();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = lane / 4, quarter = lane % 4;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kRows;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * (kColumns * kColumnBlocks);
  const uint16_t* a[2];              // this thread's rows
  const uint16_t* b[kColumnBlocks];  // "
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first_row + group + 8 * half;
    a[half] = row < params.m ? static_cast<const uint16_t*>(params.a) + row * params.a_stride : nullptr;
  }
#pragma unroll
  for (int block = 0; block < kColumnBlocks; ++block) {
    const int64_t row = first_column + block * kColumns + group;
    b[block] = row < params.n ? static_cast<const uint16_t*>(params.b) + row * params.b_stride : nullptr;
  }
  float sums[kColumnBlocks][4] = {};
  for (int64_t first = 0; first < params.k; first += kAhead * kTurn) {
    uint4 left[kAhead][2], right[kAhead][kColumnBlocks];
#pragma unroll
    for (int turn = 0; turn < kAhead; ++turn) {
      const int64_t k = first + turn * kTurn + (warp * 4 + quarter) * kChunk;
#pragma unroll
      for (int block = 0; block < kColumnBlocks; ++block)
        right[turn][block] = load_chunk<kAligned>(b[block], k, params.k);
#pragma unroll
      for (int half = 0; half < 2; ++half) left[turn][half] = load_chunk<kAligned>(a[half], k, params.k);
    }
#pragma unroll
    for (int turn = 0; turn < kAhead; ++turn) {
      const uint4 upper = left[turn][0], lower = left[turn][1];
#pragma unroll
      for (int block = 0; block < kColumnBlocks; ++block) {
        const uint4 column = right[turn][block];
        mma_16x8x16<__nv_bfloat16>(sums[block], {upper.x, lower.x, upper.y, lower.y}, column.x, column.y);
        mma_16x8x16<__nv_bfloat16>(sums[block], {upper.z, lower.z, upper.w, lower.w}, column.z, column.w);
      }
    }
  }
  release_successors();
#pragma unroll
  for (int block = 0; block < kColumnBlocks; ++block) {
#pragma unroll
    for (int e = 0; e < 4; ++e) partial[warp][block][e][lane] = sums[block][e];
  }
  __syncthreads();
  constexpr int kElements = kRows * kColumns * kColumnBlocks;
  static_assert(kElements <= kWarps * 32);
  if (threadIdx.x >= kElements) return;
  const int row = threadIdx.x / (kColumns * kColumnBlocks), column = threadIdx.x % (kColumns * kColumnBlocks);
  const int64_t i = first_row + row, j = first_column + column;
  if (i >= params.m || j >= params.n) return;
  // Where the fragment has it: see mma_16bit.cuh.
  const int element = row / 8 * 2 + column % 2, holder = row % 8 * 4 + column % kColumns / 2;
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += partial[w][column / kColumns][element][holder];
  static_cast<Output*>(params.output)[i * params.output_stride + j] = from_float<Output>(sum);
}

template <int kColumnBlocks, bool kAligned, class Output>
Status launch_kernel(const SkinnyMmParams& params, Stream stream) {
  constexpr int64_t kBlockColumns = kColumns * kColumnBlocks;
  constexpr int64_t kMostRows = kMostGridY * kRows;
  const int64_t column_blocks = (params.n + kBlockColumns - 1) / kBlockColumns;
  if (column_blocks > INT32_MAX) return Unsupported(std::string(params.operator_name) + ": N is beyond 2^34");
  const size_t output_size = static_cast<size_t>(size_of(params.output_dtype));
  for (int64_t row = 0; row < params.m; row += kMostRows) {
    SkinnyMmParams part = params;
    part.m = std::min(kMostRows, params.m - row);
    part.a = static_cast<const uint16_t*>(params.a) + row * params.a_stride;
    part.output = static_cast<uint8_t*>(params.output) + row * params.output_stride * output_size;
    const LaunchShape shape = {
        .grid = dim3(static_cast<unsigned>(column_blocks), static_cast<unsigned>((part.m + kRows - 1) / kRows)),
        .block = dim3(kWarps * 32),
        .pdl = true};
    SGL_RETURN_IF_ERROR(
        launch(params.operator_name, skinny_mm_kernel<kColumnBlocks, kAligned, Output>, shape, stream, part));
  }
  return OkStatus();
}

template <bool kAligned, class Output>
Status launch_columns(const SkinnyMmParams& params, Stream stream) {
  // 16 columns read A half as often; 8 where 16 would leave multiprocessors idle. The bits are the same.
  const bool wide = (params.n + 2 * kColumns - 1) / (2 * kColumns) >= num_sms();
  return wide ? launch_kernel<2, kAligned, Output>(params, stream) : launch_kernel<1, kAligned, Output>(params, stream);
}

template <class Output>
Status launch_output(const SkinnyMmParams& params, Stream stream) {
  constexpr uintptr_t kAlignment = 16;
  const uintptr_t pointers = reinterpret_cast<uintptr_t>(params.a) | reinterpret_cast<uintptr_t>(params.b);
  const int64_t numbers = params.a_stride | params.b_stride | params.k;
  const bool aligned = pointers % kAlignment == 0 && numbers % kChunk == 0;
  return aligned ? launch_columns<true, Output>(params, stream) : launch_columns<false, Output>(params, stream);
}

}  // namespace

Status skinny_mm_portable(const SkinnyMmParams& params, Stream stream) {
  return params.output_dtype == DType::kF32 ? launch_output<float>(params, stream)
                                            : launch_output<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
