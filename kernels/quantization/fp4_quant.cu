// NVFP4 quantization: memory-bound in bytes, 2.6 moved for an element of 16 bits, but close to bound by the rounding. A
// thread takes the 16 values of one scale, of one or two rows, see device/row_grid.cuh; threads beyond the row's last
// block, and for the rows that only fill up a tile, write a scale of 0.
//
// Where offsets say which rows are an expert's, a thread looks its row up by bisection: the offsets stay in the L1
// cache. Experts of equally many rows lie along z; with a mask, as many blocks as share out kMaskedBlocksPerSm stride
// over the rows that there are.
#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
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
  constexpr float kRound = 8388608.0f;  // 2^23
  uint32_t codes = 0;
#pragma unroll
  for (int i = 7; i >= 0; --i) {
    const float magnitude = __saturatef(fabsf(to_float(values[i])) * eighth);  // of 8
    const float code = fminf(fminf(fmaf(magnitude, 16.0f, kRound), fmaf(magnitude, 8.0f, kRound + 2.0f)),
                             fmaf(magnitude, 4.0f, kRound + 4.0f));
    codes = codes * 16 + __float_as_uint(code);
  }
  codes -= 0x4b000000u * 0x11111111u;  // the bits of 2^23, eight times
  codes -= (codes >> 3) & 0x11111111;  // from 7 on 8 has come out for 7
  const uint32_t* pairs = reinterpret_cast<const uint32_t*>(&values);
  uint32_t signs[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    constexpr int kHighBytes = 0x7531;
    const uint32_t bytes = __byte_perm(pairs[2 * i], pairs[2 * i + 1], kHighBytes) >> 4 & 0x08080808;
    signs[i] = bytes | bytes >> 4;  // of two values in bytes 0 and 2
  }
  constexpr int kEvenBytes = 0x6420;
  return codes | __byte_perm(signs[0], signs[1], kEvenBytes);
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

template <class T, bool kByOffsets, bool kFuse, int kRows>
__global__ void __launch_bounds__(kRowGridThreads) quantize_fp4_kernel(const __grid_constant__ Fp4QuantParams params) {
  wait_for_predecessor();
  release_successors();
  const int block = blockIdx.x * blockDim.x + threadIdx.x;
  if (block >= params.padded_blocks) return;
  const bool has_values = block < params.num_blocks;
  const int64_t input_step = blockDim.y * params.input_stride, output_step = blockDim.y * params.output_stride;
  for (int64_t group = blockIdx.z; group < params.num_groups; group += gridDim.z) {
    int64_t num_rows = kByOffsets ? params.num_rows : params.num_scale_rows;
    if (params.mask != nullptr) num_rows = min(params.num_rows, int64_t{params.mask[group]});
    [[maybe_unused]] const int64_t group_scales = group * params.num_scale_rows * params.padded_blocks;
    for (RowRange<kRows> rows(num_rows); rows.more(); rows.advance()) {
      const int64_t first_row = group * params.num_rows + rows.at(0);
      const T* input = static_cast<const T*>(params.input) + first_row * params.input_stride + block * kFp4Block;
      uint8_t* output = params.output + first_row * params.output_stride + block * (kFp4Block / 2);
      Sixteen<T> values[kRows], ups[kFuse ? kRows : 1];
      Place places[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int64_t row = rows.at(i);
        places[i] = {-1, 0, 0};
        if (row >= num_rows) continue;
        if constexpr (kByOffsets) {
          places[i] = find(params, row);
        } else {
          places[i] = {static_cast<int>(group), row, group_scales};
        }
        if (places[i].expert < 0 || row >= params.num_rows || !has_values) continue;
        values[i].load(input + i * input_step);
        if constexpr (kFuse) ups[i].load(input + i * input_step + params.num_blocks * kFp4Block);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (places[i].expert < 0) continue;
        uint8_t scale_bits = 0;
        if (rows.at(i) < params.num_rows && has_values) {
          if constexpr (kFuse) values[i].silu_and_mul(ups[i]);
          const float global_scale = params.global_scales[places[i].expert];
          const float amax = __uint_as_float(values[i].amax_bits());
          scale_bits = to_e4m3(global_scale * (amax * (1.0f / kFp4Max)));
          const float scale = from_e4m3(scale_bits);
          const float inverse = scale == 0.0f ? 0.0f : __frcp_rn(scale * __frcp_rn(global_scale));
          const float eighth = inverse * 0.125f;
          *reinterpret_cast<uint2*>(output + i * output_step) = {times_to_e2m1(values[i].vecs[0], eighth),
                                                                 times_to_e2m1(values[i].vecs[1], eighth)};
        }
        params.scales[places[i].scales + params.scale_at(places[i].in_expert, block)] = scale_bits;
      }
    }
  }
}

template <class T, bool kByOffsets, bool kFuse, int kRows>
Status launch_rows(const Fp4QuantParams& params, Stream stream) {
  RowGrid shape = row_grid(params.padded_blocks, kByOffsets ? params.num_rows : params.num_scale_rows, kRows);
  spread_experts(shape, params.num_groups, params.mask != nullptr);
  return launch(params.operator_name, quantize_fp4_kernel<T, kByOffsets, kFuse, kRows>,
                {.grid = shape.grid, .block = shape.block, .pdl = true}, stream, params);
}

template <class T, bool kByOffsets, bool kFuse>
Status run(const Fp4QuantParams& params, Stream stream) {
  const bool few = params.num_groups * params.num_rows * params.num_blocks < kManyVecs / 2;
  return few ? launch_rows<T, kByOffsets, kFuse, 1>(params, stream)
             : launch_rows<T, kByOffsets, kFuse, 2>(params, stream);
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
