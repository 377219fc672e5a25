// NVFP4 quantization: memory-bound in bytes, 2.6 moved for an element of 16 bits, but close to bound by the rounding. A
// thread takes the 16 values of one scale, of one row or of four in turn; threads beyond the row's last block, and for
// the rows that only fill up a tile, write a scale of 0. The grid's x is along the rows, y over parts of tiles of 128.
// Of few rows, where it is known which, a thread has one row and no loop: nothing but the addresses stands before its
// loads.
//
// Where offsets say which rows are an expert's, a thread looks its row up by bisection: the offsets stay in the L1
// cache. Experts of equally many rows lie along z; with a mask, as many blocks as share out kMaskedBlocksPerSm stride
// over the rows that there are.
//
// Measured on an H200, 2026-11-23, bf16, inputs beyond the L2 cache: 16384 rows of 4096 / 7168 take 43.4 / 72.5 µs
// (3960 / 4150 GB/s), 1024 of 4096 4.3, 128 1.7, one 0.9. Two rows' loads in flight, or the scales of a tile gathered
// in shared memory, were slower.
#include <algorithm>

#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"
#include "kernels/device/row_grid.cuh"
#include "kernels/quantization/expert_grid.cuh"
#include "kernels/quantization/fp4_quant_params.h"
#include "kernels/quantization/sixteen.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

// Eight values times 8 * `eighth` as e2m1, the first in the lowest bits: rounded to nearest even, saturated, with the
// sign of the value; the magnitude of NaN is 0. The codes of the magnitudes 0, 0.5, … 6 are 0 … 7, at distances of 0.5
// up to 2, of 1 up to 4, then of 2: the least of three roundings to an integer is the right one, each done by adding
// 2^23. Some GPUs have an instruction for all this; these few have the same bits everywhere.
template <class T>
__device__ __forceinline__ uint32_t times_to_e2m1(const Vec<T, 8>& values, float eighth) {
  const auto code = [eighth](float value) {
    constexpr float kRound = 8388608.0f;                         // 2^23
    const float magnitude = __saturatef(fabsf(value) * eighth);  // of 8
    // The bits of floats that are not negative order like the floats.
    return __vimin3_u32(__float_as_uint(fmaf(magnitude, 16.0f, kRound)),
                        __float_as_uint(fmaf(magnitude, 8.0f, kRound + 2.0f)),
                        __float_as_uint(fmaf(magnitude, 4.0f, kRound + 4.0f)));
  };
  const auto* pairs = reinterpret_cast<const typename PairOf<T>::Type*>(&values);
  uint32_t codes = 0;
#pragma unroll
  for (int i = 3; i >= 0; --i) {
    const float2 pair = PairOf<T>::to_floats(pairs[i]);
    codes = (codes * 16 + code(pair.y)) * 16 + code(pair.x);
  }
  codes -= 0x4b000000u * 0x11111111u;  // the bits of 2^23, eight times
  codes -= (codes >> 3) & 0x11111111;  // from 7 on 8 has come out for 7
  // The signs lie in the words' bytes 1 (of even values) and 3.
  const uint32_t* words = reinterpret_cast<const uint32_t*>(&values);
  const uint32_t first_bytes = __byte_perm(words[0], words[1], 0x7531);
  const uint32_t last_bytes = __byte_perm(words[2], words[3], 0x7531);
  const uint32_t even_bytes = __byte_perm(first_bytes, last_bytes, 0x6420);
  const uint32_t odd_bytes = __byte_perm(first_bytes, last_bytes, 0x7531);
  return codes | (even_bytes >> 4 & 0x08080808) | (odd_bytes & 0x80808080);
}

struct Place {
  int expert;      // -1: the row is nobody's
  int64_t scales;  // where the scale of the row's first block lies
};

__device__ __forceinline__ Place find(const Fp4QuantParams& params, int row) {
  int low = 0, high = params.num_experts;  // offsets[low] <= row < offsets[high], if any
  if (row < params.offsets[low] || row >= params.offsets[high]) return {-1, 0};
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (row < params.offsets[middle] ? high : low) = middle;
  }
  const int64_t in_expert = int64_t{row} - params.offsets[low];
  const int64_t first = params.scale_offsets[low];
  const bool inside =
      first >= 0 && first + in_expert / kScaleTileRows * kScaleTileRows + kScaleTileRows <= params.num_scale_rows;
  return {inside ? low : -1, first * params.padded_blocks + params.scale_at(in_expert, 0)};
}

// A warp has eight blocks of 16 values of a row side by side, of four rows 32 apart: their scales lie side by side,
// too, so that they are half a sector of memory each rather than an eighth.
constexpr int kLanes = 8;
constexpr int kSideRows = kWarpSize / kLanes;
constexpr int kSideDistance = kScaleTileRows / kSideRows;
constexpr int kBlockColumns = kRowGridThreads / kWarpSize * kLanes;

__device__ __forceinline__ int block_of_thread() {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  return blockIdx.x * kBlockColumns + warp * kLanes + lane % kLanes;
}

// The first of kRows neighbouring rows that a thread takes in a step; a step is kRows rows of each kSideDistance.
template <int kRows>
__device__ __forceinline__ int row_of_thread(int step) {
  constexpr int kTileSteps = kSideDistance / kRows;
  const int lane = threadIdx.x % kWarpSize;
  return step / kTileSteps * kScaleTileRows + step % kTileSteps * kRows + lane / kLanes * kSideDistance;
}

// Writes a block's values; gives its scale's bits.
template <class T>
__device__ __forceinline__ uint8_t quantize(const Sixteen<T>& values, float global_scale, float inverse_global,
                                            uint8_t* output) {
  const float amax = __uint_as_float(values.amax_bits());
  const uint8_t scale_bits = to_e4m3(global_scale * (amax * (1.0f / kFp4Max)));
  const float scale = from_e4m3(scale_bits);
  const float inverse = __frcp_rn(scale * inverse_global);
  const float eighth = scale == 0.0f ? 0.0f : inverse * 0.125f;
  *reinterpret_cast<uint2*>(output) = {times_to_e2m1(values.vecs[0], eighth), times_to_e2m1(values.vecs[1], eighth)};
  return scale_bits;
}

// A grid of a thread for each scale.
template <class T, bool kFuse>
__global__ void __launch_bounds__(kRowGridThreads) quantize_fp4_kernel(const __grid_constant__ Fp4QuantParams params) {
  const int block = block_of_thread(), row = row_of_thread<1>(blockIdx.y), group = blockIdx.z;
  if (block >= params.padded_blocks) return;
  const bool has_values = block < params.num_blocks && row < params.num_rows;
  const int64_t before = has_values ? int64_t{group} * params.num_rows + row : 0;
  const T* input = static_cast<const T*>(params.input) + before * params.input_stride + block * kFp4Block;
  wait_for_predecessor(input);
  release_successors();
  uint8_t scale_bits = 0;
  if (has_values) {
    Sixteen<T> values;
    [[maybe_unused]] Sixteen<T> up;
    values.load(input);
    if constexpr (kFuse) up.load(input + params.num_blocks * kFp4Block);
    const float global_scale = params.global_scales[group];
    float inverse_global = __frcp_rn(global_scale);
    asm volatile("" : "+f"(inverse_global));  // here, while the values are on their way
    if constexpr (kFuse) values.silu_and_mul(up);
    scale_bits = quantize(values, global_scale, inverse_global,
                          params.output + before * params.output_stride + block * (kFp4Block / 2));
  }
  params.scales[params.scale_at(int64_t{group} * params.num_scale_rows + row, block)] = scale_bits;
}

// A grid that strides over the rows that there are; a thread takes kRows neighbouring rows, one after another, before
// it takes a step over the grid.
template <class T, bool kByOffsets, bool kFuse, int kRows>
__global__ void __launch_bounds__(kRowGridThreads)
    quantize_fp4_strided_kernel(const __grid_constant__ Fp4QuantParams params) {
  wait_for_predecessor();
  release_successors();
  const int block = block_of_thread();
  if (block >= params.padded_blocks) return;
  const bool has_values = block < params.num_blocks;
  for (int group = blockIdx.z; group < params.num_groups; group += gridDim.z) {
    int num_rows = kByOffsets ? params.num_rows : params.num_scale_rows;
    if (params.mask != nullptr) num_rows = min(params.num_rows, params.mask[group]);
    const int num_value_rows = has_values ? min(num_rows, params.num_rows) : 0;
    uint8_t* const scales = params.scales + params.scale_at(int64_t{group} * params.num_scale_rows, block);
    float global_scale = 0.0f, inverse_global = 0.0f;
    if constexpr (!kByOffsets) {
      global_scale = params.global_scales[group];
      inverse_global = __frcp_rn(global_scale);
    }
    const int num_steps = (num_rows + kScaleTileRows - 1) / kScaleTileRows * (kSideDistance / kRows);
    for (int step = blockIdx.y; step < num_steps; step += gridDim.y) {
      int row = row_of_thread<kRows>(step);
      const int64_t before = int64_t{group} * params.num_rows + row;
      const T* input = static_cast<const T*>(params.input) + before * params.input_stride + block * kFp4Block;
      uint8_t* output = params.output + before * params.output_stride + block * (kFp4Block / 2);
#pragma unroll 1
      for (int i = 0; i < kRows && row < num_rows; ++i) {
        Place place = {0, 0};
        if constexpr (kByOffsets) place = find(params, row);
        const bool has_row = row < num_value_rows && place.expert >= 0;
        Sixteen<T> values;
        [[maybe_unused]] Sixteen<T> up;
        if (has_row) {
          values.load(input);
          if constexpr (kFuse) up.load(input + params.num_blocks * kFp4Block);
          if constexpr (kByOffsets) global_scale = params.global_scales[place.expert];
        }
        if constexpr (kByOffsets) {
          inverse_global = __frcp_rn(global_scale);
          asm volatile("" : "+f"(inverse_global));  // here, while the values are on their way
        }
        uint8_t scale_bits = 0;
        if (has_row) {
          if constexpr (kFuse) values.silu_and_mul(up);
          scale_bits = quantize(values, global_scale, inverse_global, output);
        }
        if (place.expert >= 0) scales[kByOffsets ? place.scales : params.scale_at(row, 0)] = scale_bits;
        ++row;
        input += params.input_stride;
        output += params.output_stride;
      }
    }
  }
}

template <class T, bool kByOffsets, bool kFuse>
Status run(const Fp4QuantParams& params, Stream stream) {
  constexpr int kManyRows = 4;
  const bool few = int64_t{params.num_groups} * params.num_rows * params.num_blocks < kManyVecs;
  const int64_t num_rows = kByOffsets ? params.num_rows : params.num_scale_rows;
  const int64_t num_steps =
      (num_rows + kScaleTileRows - 1) / kScaleTileRows * (few ? kSideDistance : kSideDistance / kManyRows);
  RowGrid shape;
  shape.block = kRowGridThreads;
  shape.grid = dim3(static_cast<unsigned>((params.padded_blocks + kBlockColumns - 1) / kBlockColumns),
                    static_cast<unsigned>(std::min(kMostGridY, num_steps)));
  spread_experts(shape, params.num_groups, params.mask != nullptr);
  auto kernel = few ? quantize_fp4_strided_kernel<T, kByOffsets, kFuse, 1>
                    : quantize_fp4_strided_kernel<T, kByOffsets, kFuse, kManyRows>;
  if constexpr (!kByOffsets) {
    const bool whole =
        params.mask == nullptr && shape.grid.y == num_steps && static_cast<int>(shape.grid.z) == params.num_groups;
    if (few && whole) kernel = quantize_fp4_kernel<T, kFuse>;
  }
  return launch(params.operator_name, kernel, {.grid = shape.grid, .block = shape.block, .pdl = true}, stream, params);
}

template <class T>
Status run(const Fp4QuantParams& params, Stream stream) {
  if (params.offsets != nullptr) return run<T, true, false>(params, stream);
  return params.fuse_silu_and_mul ? run<T, false, true>(params, stream) : run<T, false, false>(params, stream);
}

}  // namespace

Status quantize_fp4(const Fp4QuantParams& params, Stream stream) {
  return params.dtype == DType::kF16 ? run<__half>(params, stream) : run<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
