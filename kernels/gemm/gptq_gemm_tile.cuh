// The kernel of gptq_gemm: mma.sync with weights that go from memory to registers, decoded there.
//
// An instruction does not mind in which order K is walked, if only both operands have the same. So a lane's share of
// operand B is a run of consecutive rows of its columns, whole units of the packing, and its share of operand A the
// same run of a row of a: both are wide loads, without a way through shared memory. A step is four runs along K (those
// of t = 0 … 3); a lane holds the columns 4g … 4g + 3 of each 32.
//
// Grid: x is a tile of kMixedTileColumns columns and 16 * kRowTiles rows, the rows of one column tile being neighbours;
// z is a split of K. A block's eight warps are two of 64 columns by four of K, whose sums meet in shared memory at the
// end, in the order of K. Few rows are bound by memory; each warp keeps kAhead steps on their way.
#pragma once

#include <type_traits>

#include "kernels/device/mma_16bit.cuh"
#include "kernels/gemm/gptq_gemm_params.h"
#include "kernels/gemm/gptq_layout.h"
#include "kernels/gemm/mixed_mm_splits.cuh"

namespace sgl_kernel::SGL_TARGET::gptq {

// kScaled: the group's sum is scaled in f32; a step has one group. Else each weight is, and rounded to f16.
template <int kBits_, bool kShuffled_, bool kScaled_, int kRowTiles_>
struct Config {
  static constexpr int kBits = kBits_, kRowTiles = kRowTiles_, kRows = 16 * kRowTiles;
  static constexpr bool kShuffled = kShuffled_, kScaled = kScaled_;

  static constexpr int kWords = kBits == 8 ? 2 : gptq_unit_words(kBits);  // of a run
  static constexpr int kRun = 32 * kWords / kBits, kStep = 4 * kRun;      // along K
  static constexpr int kColumnWarps = 2, kDepthWarps = 4, kThreads = 32 * kColumnWarps * kDepthWarps;
  static constexpr int kHalves = 2, kWarpColumns = 32 * kHalves, kColumnTiles = 4 * kHalves;  // n8 tiles: 4 * half + i
  static constexpr int kAhead = kRun <= 8 ? 3 : 1;
  static_assert(kColumnWarps * kWarpColumns == kMixedTileColumns);
};

// What a lane needs of a step.
template <class C>
struct Step {
  uint4 weights[C::kHalves][C::kWords];      // words of four columns
  uint4 rows[C::kRowTiles][2][C::kRun / 8];  // runs of rows g and g + 8 of each tile

  __device__ __forceinline__ void load(const GptqGemmParams& params, int64_t first_row, int64_t first_n, int step) {
    const int lane = threadIdx.x % 32, g = lane / 4;
    const int64_t k = static_cast<int64_t>(step) * C::kStep + lane % 4 * C::kRun;
    const bool inside = k < params.k;
#pragma unroll
    for (int half = 0; half < C::kHalves; ++half) {
      const int64_t n = first_n + 32 * half + 4 * g;
#pragma unroll
      for (int word = 0; word < C::kWords; ++word) {
        const uint32_t* const from = params.weight + (k / 32 * C::kBits + k % 32 * C::kBits / 32 + word) * params.n + n;
        weights[half][word] =
            inside && n < params.n ? __ldg(reinterpret_cast<const uint4*>(from)) : make_uint4(0, 0, 0, 0);
      }
    }
    const __half* const a = static_cast<const __half*>(params.gathered != nullptr ? params.gathered : params.a);
#pragma unroll
    for (int r = 0; r < C::kRowTiles; ++r) {
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        const int64_t row = first_row + 16 * r + 8 * below + g;
        const uint4* const from = reinterpret_cast<const uint4*>(a + row * params.k + k);
#pragma unroll
        for (int i = 0; i < C::kRun / 8; ++i) {
          rows[r][below][i] = inside && row < params.m ? __ldg(from + i) : make_uint4(0, 0, 0, 0);
        }
      }
    }
  }

  // Words of column `column` (of the tile's four) of a half.
  __device__ __forceinline__ void words_of(int half, int column, uint32_t (&words)[C::kWords]) const {
#pragma unroll
    for (int word = 0; word < C::kWords; ++word) {
      const uint4& four = weights[half][word];
      words[word] = column == 0 ? four.x : column == 1 ? four.y : column == 2 ? four.z : four.w;
    }
  }

  // Numbers 2i and 2i + 1 of a row's run.
  __device__ __forceinline__ uint32_t row_pair(int r, int below, int i) const {
    const uint4& eight = rows[r][below][i / 4];
    return i % 4 == 0 ? eight.x : i % 4 == 1 ? eight.y : i % 4 == 2 ? eight.z : eight.w;
  }
};

// Numbers 2i and 2i + 1 of a run, 16 bits apart.
template <class C>
__device__ __forceinline__ uint32_t number_pair(const uint32_t (&words)[C::kWords], int i) {
  if constexpr (C::kBits == 8) {
    return __byte_perm(words[i / 2], 0, i % 2 == 0 ? 0x4140 : 0x4342);
  } else if constexpr (!C::kShuffled) {
    return gptq_number(C::kBits, words, 1, 2 * i) | gptq_number(C::kBits, words, 1, 2 * i + 1) << 16;
  } else if constexpr (C::kBits == 3) {
    if (i == 15) {
      return (words[0] >> 15 & 0x00010001) | (words[1] >> 14 & 0x00020002) | (words[2] >> 13 & 0x00040004);
    }
    return words[i / 5] >> 3 * (i % 5) & 0x00070007;
  } else {
    constexpr uint32_t kMask = ((1u << C::kBits) - 1) * 0x10001u;
    return words[0] >> C::kBits * i & kMask;
  }
}

// f16 of two numbers, less zero points: 1024 plus a number is a matter of bits, and the difference is exact.
inline constexpr uint32_t kUnitPlace = 0x64006400;
__device__ __forceinline__ __half2 subtract(uint32_t numbers, __half2 biased_zeros) {
  const uint32_t biased = numbers | kUnitPlace;
  return __hsub2(*reinterpret_cast<const __half2*>(&biased), biased_zeros);
}

// The packed zero points of columns 4g … 4g + 3 of a half: two words of which those are a part.
template <class C>
struct Zeros {
  uint32_t low[C::kHalves], high[C::kHalves];

  __device__ __forceinline__ void load(const GptqGemmParams& params, int64_t group, int64_t first_n) {
    const int word = threadIdx.x % 32 / 4 * 4 * C::kBits / 32;
#pragma unroll
    for (int half = 0; half < C::kHalves; ++half) {
      const int64_t n = first_n + 32 * half;
      const uint32_t* const string = params.zeros + (group * params.n + n) / 32 * C::kBits;
      low[half] = n < params.n ? __ldg(string + word) : 0;
      high[half] = n < params.n ? __ldg(string + min(word + 1, C::kBits - 1)) : 0;
    }
  }

  // 1025 plus the packed number: what biased numbers are less than by their zero point.
  __device__ __forceinline__ __half biased(int half, int column) const {
    const int shift = threadIdx.x % 32 / 4 * 4 * C::kBits % 32;
    const uint32_t four = __funnelshift_r(low[half], high[half], shift);
    return __ushort2half_rn(static_cast<unsigned short>(1025 + (four >> C::kBits * column & ((1 << C::kBits) - 1))));
  }
};

// A warp's sums over its range of K.
template <class C>
class Sums {
 public:
  __device__ __forceinline__ Sums(const GptqGemmParams& params, int64_t first_n, int first_step)
      : params_(params), first_n_(first_n) {
    if constexpr (C::kScaled) {
      steps_per_group_ = static_cast<int>(params.k / params.num_groups / C::kStep);
      group_ = first_step / steps_per_group_;
      left_ = static_cast<int>((group_ + 1) * steps_per_group_ - first_step);
      if (group_ >= params.num_groups) return;  // an empty range at the end
      zeros_.load(params, group_, first_n);
      begin_group();
    }
  }

  __device__ __forceinline__ void add(const Step<C>& step, int number) {
    if constexpr (C::kScaled) {
      if (left_ == 0) {
        end_group();
        ++group_;
        left_ = steps_per_group_;
        begin_group();
      }
      --left_;
      add_scaled(step);
    } else {
      add_rounded(step, number);
    }
  }

  __device__ __forceinline__ void finish() {
    if constexpr (C::kScaled) {
      if (group_ < params_.num_groups) end_group();
    }
  }

  float sums[C::kRowTiles][C::kColumnTiles][4] = {};

 private:
  // Asks for the group's scales, which are not used before its end, and sets its zero points, which were asked for when
  // the group before it began.
  __device__ __forceinline__ void begin_group() {
#pragma unroll
    for (int half = 0; half < C::kHalves; ++half) {
      const int64_t n = first_n_ + 32 * half;
      const __half* const scales = static_cast<const __half*>(params_.scales) + group_ * params_.n + n;
      scales_[half] =
          n < params_.n ? __ldg(reinterpret_cast<const uint4*>(scales) + threadIdx.x % 4) : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int column = 0; column < 4; ++column) {
        biased_zeros_[4 * half + column] = __half2half2(zeros_.biased(half, column));
      }
    }
    if (group_ + 1 < params_.num_groups) zeros_.load(params_, group_ + 1, first_n_);
  }

  // A sum's columns 2t and 2t + 1 of tile i of a half are the columns 8t + i and 8t + 4 + i there.
  __device__ __forceinline__ void end_group() {
#pragma unroll
    for (int half = 0; half < C::kHalves; ++half) {
      const __half* const scales = reinterpret_cast<const __half*>(&scales_[half]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float first = __half2float(scales[i]), second = __half2float(scales[4 + i]);
#pragma unroll
        for (int r = 0; r < C::kRowTiles; ++r) {
          float (&sum)[4] = sums[r][4 * half + i];
          float (&part)[4] = of_group_[r][4 * half + i];
          sum[0] += part[0] * first;
          sum[1] += part[1] * second;
          sum[2] += part[2] * first;
          sum[3] += part[3] * second;
          part[0] = part[1] = part[2] = part[3] = 0.0f;
        }
      }
    }
  }

  __device__ __forceinline__ void multiply(float (&sum)[C::kRowTiles][C::kColumnTiles][4], const Step<C>& step,
                                           int tile, int i, __half2 b0, __half2 b1) {
#pragma unroll
    for (int r = 0; r < C::kRowTiles; ++r) {
      const uint32_t a[4] = {step.row_pair(r, 0, 2 * i), step.row_pair(r, 1, 2 * i), step.row_pair(r, 0, 2 * i + 1),
                             step.row_pair(r, 1, 2 * i + 1)};
      mma_16x8x16<__half>(sum[r][tile], a, *reinterpret_cast<const uint32_t*>(&b0),
                          *reinterpret_cast<const uint32_t*>(&b1));
    }
  }

  __device__ __forceinline__ void add_scaled(const Step<C>& step) {
#pragma unroll
    for (int tile = 0; tile < C::kColumnTiles; ++tile) {
      uint32_t words[C::kWords];
      step.words_of(tile / 4, tile % 4, words);
#pragma unroll
      for (int i = 0; i < C::kRun / 4; ++i) {
        multiply(of_group_, step, tile, i, subtract(number_pair<C>(words, 2 * i), biased_zeros_[tile]),
                 subtract(number_pair<C>(words, 2 * i + 1), biased_zeros_[tile]));
      }
    }
  }

  // The weight, scaled and rounded, of rows k and k + 1 of column n. Not inlined: the rare way is to be small, not
  // fast.
  static __device__ __noinline__ __half2 rounded_pair(const GptqGemmParams& params, uint32_t numbers, int64_t k,
                                                      int64_t n) {
    constexpr int kNumbers = gptq_unit_numbers(C::kBits), kUnit = gptq_unit_words(C::kBits);
    const int64_t column = min(n, params.n - 1);  // columns and rows beyond count for nothing
    __half scale[2], zero[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int64_t row = min(k + e, params.k - 1);
      const int64_t group =
          params.groups != nullptr ? __ldg(params.groups + row) : row / (params.k / params.num_groups);
      const uint32_t* const unit = params.zeros + group * (params.n / 32 * C::kBits) + column / kNumbers * kUnit;
      const uint32_t packed = gptq_number(C::kBits, unit, 1, static_cast<int>(column % kNumbers));
      zero[e] = __ushort2half_rn(static_cast<unsigned short>(1025 + packed));
      scale[e] = __ldg(static_cast<const __half*>(params.scales) + group * params.n + column);
    }
    return __hmul2(subtract(numbers, __halves2half2(zero[0], zero[1])), __halves2half2(scale[0], scale[1]));
  }

  __device__ __forceinline__ void add_rounded(const Step<C>& step, int number) {
    const int64_t k = static_cast<int64_t>(number) * C::kStep + threadIdx.x % 4 * C::kRun;
#pragma unroll
    for (int tile = 0; tile < C::kColumnTiles; ++tile) {
      const int64_t n = first_n_ + tile / 4 * 32 + threadIdx.x % 32 / 4 * 4 + tile % 4;
      uint32_t words[C::kWords];
      step.words_of(tile / 4, tile % 4, words);
#pragma unroll
      for (int i = 0; i < C::kRun / 4; ++i) {
        const __half2 b0 = rounded_pair(params_, number_pair<C>(words, 2 * i), k + 4 * i, n);
        const __half2 b1 = rounded_pair(params_, number_pair<C>(words, 2 * i + 1), k + 4 * i + 2, n);
        multiply(sums, step, tile, i, b0, b1);
      }
    }
  }

  const GptqGemmParams& params_;
  const int64_t first_n_;
  int64_t group_ = 0;
  int steps_per_group_ = 1, left_ = 0;
  uint4 scales_[C::kHalves];
  Zeros<C> zeros_;
  __half2 biased_zeros_[C::kColumnTiles];
  float of_group_[C::kRowTiles][C::kColumnTiles][4] = {};
};

template <class C>
__global__ void __launch_bounds__(C::kThreads)
    gptq_gemm_kernel(const __grid_constant__ GptqGemmParams params, unsigned row_blocks) {
  __shared__ float4 all[C::kThreads / 32][C::kColumnTiles][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int column_warp = warp % C::kColumnWarps, depth_warp = warp / C::kColumnWarps;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x % row_blocks) * C::kRows;
  const int64_t first_n =
      static_cast<int64_t>(blockIdx.x / row_blocks) * kMixedTileColumns + column_warp * C::kWarpColumns;
  const int num_steps = static_cast<int>((params.k + C::kStep - 1) / C::kStep);
  const mixed_mm::StepRanges ranges(num_steps, static_cast<int>(gridDim.z) * C::kDepthWarps);
  const mixed_mm::StepRange range = ranges.of(static_cast<int>(blockIdx.z) * C::kDepthWarps + depth_warp);

  Step<C> steps[C::kAhead];
#pragma unroll
  for (int i = 0; i < C::kAhead; ++i) {
    if (range.begin + i < range.end) steps[i].load(params, first_row, first_n, range.begin + i);
  }
  Sums<C> warp_sums(params, first_n, range.begin);
  for (int begin = range.begin; begin < range.end; begin += C::kAhead) {
#pragma unroll
    for (int i = 0; i < C::kAhead; ++i) {
      if (begin + i >= range.end) break;
      warp_sums.add(steps[i], begin + i);
      if (begin + i + C::kAhead < range.end) steps[i].load(params, first_row, first_n, begin + i + C::kAhead);
    }
  }
  if (range.begin < range.end) warp_sums.finish();
  release_successors();

  // Of each tile of rows, a warp adds up a half of its 64 columns for rows g or g + 8: eight neighbouring columns a
  // lane.
  const int half = depth_warp % 2, below = depth_warp / 2;
  static_assert(C::kDepthWarps == 2 * C::kHalves);
  const int64_t column = first_n + 32 * half + lane % 4 * 8;
#pragma unroll
  for (int r = 0; r < C::kRowTiles; ++r) {
    if (r > 0) __syncthreads();  // the sums of the tile before have been read
#pragma unroll
    for (int tile = 0; tile < C::kColumnTiles; ++tile) {
      const float (&sum)[4] = warp_sums.sums[r][tile];
      all[warp][tile][lane] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
    __syncthreads();
    float sum[8] = {};
#pragma unroll
    for (int depth = 0; depth < C::kDepthWarps; ++depth) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 part = all[depth * C::kColumnWarps + column_warp][4 * half + i][lane];
        sum[i] += below == 0 ? part.x : part.z;
        sum[4 + i] += below == 0 ? part.y : part.w;
      }
    }
    const int64_t row = first_row + 16 * r + 8 * below + lane / 4;
    if (row >= params.m || column >= params.n) continue;
    const int64_t at = row * params.n + column;
    if (params.partials != nullptr) {
      float4* const to =
          reinterpret_cast<float4*>(params.partials + static_cast<int64_t>(blockIdx.z) * params.m * params.n + at);
      to[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
      to[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
    } else {
      __half2* const to = reinterpret_cast<__half2*>(static_cast<__half*>(params.result) + at);
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = __floats2half2_rn(sum[2 * i], sum[2 * i + 1]);
    }
  }
}

}  // namespace sgl_kernel::SGL_TARGET::gptq
