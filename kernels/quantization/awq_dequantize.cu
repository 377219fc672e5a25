// Decoding of AWQ weights: memory-bound, 4 bytes read and 16 written for a word. A thread decodes the words of one
// column in four neighbouring rows, which share zero points and scales; see device/row_grid.cuh, whose rows are those
// fours. Rows go one by one where groups are not whole fours.
//
// The words come a phase ahead, scales and zero points all at the start, see device/prefetch_phase.cuh.
//
// Measured on an H200, 2026-11-23, f16, groups of 128, inputs beyond the L2 cache: 4096x4096 takes 10.8 µs (3910 GB/s),
// 4096x9216 23.7 (4020), 8192x28672 143.6 (4120).
#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
#include "kernels/device/prefetch_phase.cuh"
#include "kernels/device/row_grid.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/quantization/awq_dequantize_params.h"

namespace sgl_kernel::SGL_TARGET {
namespace {

// 2^23 plus element i of a word: the bits of a float whose last place is 1.
__device__ __forceinline__ float above_2_23(uint32_t word, int i) {
  return __uint_as_float((word >> awq_bit(i) & 15) | 0x4b000000);
}

// The least number of blocks, 1, has ptxas spend the registers that let the rows' stores follow each other.
template <class T, int kRows>
__global__ void __launch_bounds__(kRowGridThreads, 1) decode_awq_kernel(const __grid_constant__ AwqParams params) {
  using Scales = Vec<T, kAwqPerWord>;
  constexpr int kBlockBytes = kRowGridThreads * kRows * sizeof(uint32_t), kPhaseBytes = 1 << 20;
  prefetch_phase<kPhaseBytes / kBlockBytes>(params.qweight, params.num_rows * params.words_per_row * sizeof(uint32_t),
                                            kBlockBytes);
  prefetch_whole(params.scales, params.num_groups * params.words_per_row * sizeof(Scales));
  prefetch_whole(params.qzeros, params.num_groups * params.words_per_row * sizeof(uint32_t));
  wait_for_predecessor();
  release_successors();
  const int64_t column = row_vec();
  if (column >= params.words_per_row) return;
  const int num_chunks = static_cast<int>(params.num_rows / kRows);
  const int group_chunks = static_cast<int>(params.group_size / kRows);
  for (RowRange<1> chunks(num_chunks); chunks.more(); chunks.advance()) {
    const int64_t row = chunks.at(0) * kRows;
    const int64_t group = static_cast<int>(chunks.at(0)) / group_chunks;
    uint32_t words[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) words[i] = params.qweight[(row + i) * params.words_per_row + column];
    const uint32_t zeros = params.qzeros[group * params.words_per_row + column];
    const Scales scales =
        Scales::load(static_cast<const T*>(params.scales) + (group * params.words_per_row + column) * kAwqPerWord);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      Vec<typename PairOf<T>::Type, kAwqPerWord / 2> pairs;
#pragma unroll
      for (int j = 0; j < kAwqPerWord; j += 2) {
        // The differences are exact, and so are the products in f32.
        pairs[j / 2] =
            PairOf<T>::round((above_2_23(words[i], j) - above_2_23(zeros, j)) * to_float(scales[j]),
                             (above_2_23(words[i], j + 1) - above_2_23(zeros, j + 1)) * to_float(scales[j + 1]));
      }
      T* result = static_cast<T*>(params.result) + ((row + i) * params.words_per_row + column) * kAwqPerWord;
      *reinterpret_cast<uint4*>(result) = reinterpret_cast<const uint4&>(pairs);  // in one store
    }
  }
}

template <class T, int kRows>
Status run(const AwqParams& params, Stream stream) {
  const RowGrid shape = row_grid(params.words_per_row, params.num_rows / kRows, 1);
  return launch("awq_dequantize", decode_awq_kernel<T, kRows>, {.grid = shape.grid, .block = shape.block, .pdl = true},
                stream, params);
}

template <class T>
Status run(const AwqParams& params, Stream stream) {
  constexpr int kRows = 4;
  return params.group_size % kRows == 0 ? run<T, kRows>(params, stream) : run<T, 1>(params, stream);
}

}  // namespace

Status decode_awq(const AwqParams& params, Stream stream) {
  return params.dtype == DType::kF16 ? run<__half>(params, stream) : run<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
