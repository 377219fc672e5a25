// NVFP4 quantization: memory-bound in bytes, 2.6 moved for an element of 16 bits, but close to bound by the rounding,
// some ten instructions an element without an instruction for e2m1. A thread takes the 16 values of one scale, of one
// or two rows, see device/row_grid.cuh; threads beyond the row's last block, and for the rows that only fill up a tile,
// write a scale of 0.
//
// Where offsets say which rows are an expert's, a thread looks its row up by bisection: the offsets stay in the L1
// cache. Experts of equally many rows lie along z; with a mask, as many blocks as share out kMaskedBlocksPerSm stride
// over the rows that there are.
#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
#include "kernels/device/row_grid.cuh"
#include "kernels/quantization/fp4_quant_params.h"
#include "kernels/quantization/sixteen.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int64_t kMaskedBlocksPerSm = 64;  // four times as many as run at once: experts differ in their rows
constexpr int64_t kMostGridZ = 65535;       // CUDA's limit: the kernel loops over what lies beyond

// The code of e2m1 as the low bits of a word, above it the bits of 2^23: rounded to nearest even, saturated; NaN is 6.
// The codes of the magnitudes 0, 0.5, … 6 are 0 … 7, at distances of 0.5 up to 2, of 1 up to 4, then of 2: the least of
// three roundings to an integer, each done by adding 2^23, is the right one.
__device__ __forceinline__ uint32_t e2m1_bits(float value) {
  constexpr float kRound = 8388608.0f;  // 2^23
  const float magnitude = fabsf(value);
  const float code = fminf(fminf(fmaf(magnitude, 2.0f, kRound), magnitude + (kRound + 2.0f)),
                           fminf(fmaf(magnitude, 0.5f, kRound + 4.0f), kRound + 7.0f));
  return __float_as_uint(code) | (__float_as_uint(value) >> 28 & 8);
}

// Eight values times `factor`; the first in the lowest bits.
template <class T>
__device__ __forceinline__ uint32_t times_to_e2m1(const Sixteen<T>& values, int first, float factor) {
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) word |= (e2m1_bits(values[first + i] * factor) & 15) << (4 * i);
  return word;
}

struct Place {
  int expert;         // -1: the row is nobody's
  int64_t in_expert;  // the row among those of its expert
  int64_t scales;     // the first byte of the expert's scales
};

__device__ __forceinline__ Place find(const Fp4QuantParams& params, int64_t row) {
  int low = 0, high = params.num_experts;  // offsets[low] <= row < offsets[high], if any
  if (row < params.offsets[low] || row >= params.offsets[high]) return {-1, 0, 0};
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (row < params.offsets[middle] ? high : low) = middle;
  }
  const int64_t in_expert = row - params.offsets[low];
  const int64_t first = params.scale_offsets[low];
  const bool inside =
      first >= 0 && first + in_expert / kScaleTileRows * kScaleTileRows + kScaleTileRows <= params.num_scale_rows;
  return {inside ? low : -1, in_expert, first * params.padded_blocks};
}

template <class T, bool kFuse, int kRows>
__global__ void __launch_bounds__(kRowGridThreads) quantize_fp4_kernel(const __grid_constant__ Fp4QuantParams params) {
  wait_for_predecessor();
  release_successors();
  const int64_t block = row_vec();
  if (block >= params.padded_blocks) return;
  const bool has_values = block < params.num_blocks;
  const bool by_offsets = params.offsets != nullptr;
  for (int64_t group = blockIdx.z; group < params.num_groups; group += gridDim.z) {
    int64_t num_rows = by_offsets ? params.num_rows : params.num_scale_rows;
    if (params.mask != nullptr) num_rows = min(params.num_rows, int64_t{params.mask[group]});
    const int64_t first_row = group * params.num_rows;
    const T* input = static_cast<const T*>(params.input) + first_row * params.input_stride + block * kFp4Block;
    uint8_t* output = params.output + first_row * params.output_stride + block * (kFp4Block / 2);
    const int64_t group_scales = group * params.num_scale_rows * params.padded_blocks;
    for (RowRange<kRows> rows(num_rows); rows.more(); rows.advance()) {
      Sixteen<T> values[kRows], ups[kFuse ? kRows : 1];
      Place places[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int64_t row = rows.at(i);
        places[i] = {-1, 0, 0};
        if (row >= num_rows) continue;
        places[i] = by_offsets ? find(params, row) : Place{static_cast<int>(group), row, group_scales};
        if (places[i].expert < 0 || row >= params.num_rows || !has_values) continue;
        values[i].load(input + row * params.input_stride);
        if constexpr (kFuse) ups[i].load(input + row * params.input_stride + params.num_blocks * kFp4Block);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int64_t row = rows.at(i);
        if (places[i].expert < 0) continue;
        uint8_t scale_bits = 0;
        if (row < params.num_rows && has_values) {
          if constexpr (kFuse) values[i].silu_and_mul(ups[i]);
          const float global_scale = params.global_scales[places[i].expert];
          const float amax = __uint_as_float(values[i].amax_bits());
          scale_bits = to_e4m3(global_scale * (amax * (1.0f / kFp4Max)));
          const float scale = from_e4m3(scale_bits);
          const float inverse = scale == 0.0f ? 0.0f : __frcp_rn(scale * __frcp_rn(global_scale));
          *reinterpret_cast<uint2*>(output + row * params.output_stride) = {times_to_e2m1(values[i], 0, inverse),
                                                                            times_to_e2m1(values[i], 8, inverse)};
        }
        params.scales[places[i].scales + params.scale_at(places[i].in_expert, block)] = scale_bits;
      }
    }
  }
}

template <class T, bool kFuse, int kRows>
Status launch_rows(const Fp4QuantParams& params, Stream stream) {
  const int64_t num_rows = params.offsets != nullptr ? params.num_rows : params.num_scale_rows;
  RowGrid shape = row_grid(params.padded_blocks, num_rows, kRows);
  shape.grid.z = static_cast<unsigned>(std::min(params.num_groups, kMostGridZ));
  if (params.mask != nullptr) {
    const int64_t share = num_sms() * kMaskedBlocksPerSm / (int64_t{shape.grid.x} * shape.grid.z);
    shape.grid.y = static_cast<unsigned>(std::min<int64_t>(shape.grid.y, std::max<int64_t>(1, share)));
  }
  return launch(params.operator_name, quantize_fp4_kernel<T, kFuse, kRows>,
                {.grid = shape.grid, .block = shape.block, .pdl = true}, stream, params);
}

template <class T>
Status run(const Fp4QuantParams& params, Stream stream) {
  const bool few = params.num_groups * params.num_rows * params.num_blocks < kManyVecs / 2;
  if (params.fuse_silu_and_mul) {
    return few ? launch_rows<T, true, 1>(params, stream) : launch_rows<T, true, 2>(params, stream);
  }
  return few ? launch_rows<T, false, 1>(params, stream) : launch_rows<T, false, 2>(params, stream);
}

}  // namespace

Status quantize_fp4(const Fp4QuantParams& params, Stream stream) {
  return params.dtype == DType::kF16 ? run<__half>(params, stream) : run<__nv_bfloat16>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
