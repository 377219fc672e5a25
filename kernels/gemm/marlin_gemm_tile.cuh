// The kernel of gptq_marlin_gemm: mma.sync with weights that are decoded in registers.
//
// Grid: x is a tile of kMixedTileColumns columns and 16 * kRowTiles rows, the rows of one column tile being neighbours
// so that they share its weights in the L2 cache; z is a split of K. A block's eight warps are two of 64 columns by
// four of K: each warp walks a range of K of its own, whose sums meet in shared memory at the end, in the order of K.
// Weights and rows of a come through a ring of cp.async stages, so that a multiprocessor's two blocks keep some 96 KiB
// on their way. Few rows are bound by memory, many by the decoding, done anew for each 32 rows.
//
// A group's sum is kept apart and joins the result when the group ends, times its scale in f32. Irregular groups scale
// the weights themselves.
#pragma once

#include "kernels/device/copy_async.cuh"
#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/mma_int8.cuh"
#include "kernels/gemm/marlin_gemm_decode.cuh"
#include "kernels/gemm/marlin_layout.h"

namespace sgl_kernel::SGL_TARGET::marlin {

enum class Mode : uint8_t { kRegular, kIrregular, kFloatZeros };

template <class T_, Format kFormat_, Mode kMode_, int kRowTiles_>
struct Config {
  using T = T_;
  static constexpr Format kFormat = kFormat_;
  static constexpr Mode kMode = kMode_;
  static constexpr int kRowTiles = kRowTiles_, kRows = 16 * kRowTiles, kBits = bits_of(kFormat);
  static constexpr bool kHasZeros = kFormat == Format::kInt4 || kFormat == Format::kInt8;

  static constexpr int kColumnWarps = 2, kDepthWarps = 4, kThreads = 32 * kColumnWarps * kDepthWarps;
  static constexpr int kTilesPerStep = 16 / kBits;  // of K, a warp: 2 KiB of weights
  static constexpr int kTileWords = kMarlinTileK * kMarlinTileN * kBits / 32;
  static constexpr int kStages = kRowTiles == 1 ? 4 : 3;

  static constexpr int kRowChunks = kTilesPerStep * kMarlinTileK * 2 / 16;  // 16-byte chunks of a row's share of a step
  static constexpr int kRowBytes = 16 * kRowChunks;
  static constexpr int kRowsBytes = kDepthWarps * kRows * kRowBytes;
  static constexpr int kWarpWeightBytes = kTilesPerStep * kTileWords * 4;
  static constexpr int kStageBytes = kRowsBytes + kColumnWarps * kDepthWarps * kWarpWeightBytes;
  static constexpr int kColumnTiles = kMarlinTileN / 8;  // n8 tiles of a warp
  static constexpr int kSumBytes = kColumnWarps * kDepthWarps * kRowTiles * kColumnTiles * 32 * 16;
  static constexpr int kSharedBytes = kStages * kStageBytes > kSumBytes ? kStages* kStageBytes : kSumBytes;
  static_assert(kColumnWarps * kMarlinTileN == kMixedTileColumns);
  static_assert(kSharedBytes <= 99 * 1024, "what a block of sm_89 and sm_120 has");
};

// Where chunk `chunk` of a row lies among its chunks, so that the eight rows of a matrix differ in their banks.
template <class C>
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return C::kRowChunks == 8 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
}

using mixed_mm::StepRange;
using mixed_mm::StepRanges;

// The scales of a group for a lane's sums: of columns 2t + 8j (first) and 2t + 1 + 8j (second).
template <class C>
struct Scales {
  using T = typename C::T;
  uint4 first, second;  // eight numbers of T; of float4 weights eight bytes

  __device__ __forceinline__ void load(const MarlinGemmParams& params, int64_t group, int64_t first_n, int t) {
    if constexpr (C::kFormat == Format::kE2M1) {
      const char* const bytes = static_cast<const char*>(params.scales) + group / 2 * 2 * params.n +
                                (first_n / 8 + 2 * t) * 16 + group % 2 * 8;
      const uint2 a = __ldg(reinterpret_cast<const uint2*>(bytes));
      const uint2 b = __ldg(reinterpret_cast<const uint2*>(bytes + 16));
      first = make_uint4(a.x, a.y, 0, 0);
      second = make_uint4(b.x, b.y, 0, 0);
    } else {
      const uint4* const scales =
          reinterpret_cast<const uint4*>(static_cast<const T*>(params.scales) + group * params.n + first_n);
      if (params.many_groups) {
        first = __ldg(scales + 2 * t);
        second = __ldg(scales + 2 * t + 1);
      } else {
        // Eight numbers are columns 2t and 2t + 1 in turn, of j < 4 and of the others.
        const uint4 a = __ldg(scales + t), b = __ldg(scales + 4 + t);
        constexpr int kLower = 0x5410, kUpper = 0x7632;
        first = make_uint4(__byte_perm(a.x, a.y, kLower), __byte_perm(a.z, a.w, kLower), __byte_perm(b.x, b.y, kLower),
                           __byte_perm(b.z, b.w, kLower));
        second = make_uint4(__byte_perm(a.x, a.y, kUpper), __byte_perm(a.z, a.w, kUpper), __byte_perm(b.x, b.y, kUpper),
                            __byte_perm(b.z, b.w, kUpper));
      }
    }
  }

  static __device__ __forceinline__ float value(const uint4& numbers, int j) {
    const uint32_t words[4] = {numbers.x, numbers.y, numbers.z, numbers.w};
    if constexpr (C::kFormat == Format::kE2M1) {
      const int quad = j % 4, byte = quad == 1 ? 2 : quad == 2 ? 1 : quad;
      const uint32_t bits = words[j / 4] >> 8 * byte & 0xff;
      return __half2float(__ushort_as_half(static_cast<unsigned short>(bits << 7)));
    } else {
      const uint16_t bits = static_cast<uint16_t>(words[j / 2] >> 16 * (j % 2));
      return static_cast<float>(bit_cast<T>(bits)) * kScaleFactor<T, C::kFormat>;
    }
  }
};

// The packed zero points of a group for a lane's columns g + 8j.
template <class C>
struct Zeros {
  uint32_t words[C::kBits / 4];

  __device__ __forceinline__ void load(const MarlinGemmParams& params, int64_t group, int64_t first_n, int g) {
    constexpr int kPerWord = 32 / C::kBits, kWords = C::kBits / 4;
    const uint32_t* const packed = static_cast<const uint32_t*>(params.zeros) + (group * params.n + first_n) / kPerWord;
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = __ldg(packed + g * kWords + i);
  }

  __device__ __forceinline__ uint32_t value(int j) const {
    constexpr int kPerWord = 32 / C::kBits;
    return words[j / kPerWord] >> marlin_zero_bit(C::kBits, j % kPerWord) & ((1u << C::kBits) - 1);
  }
};

// Asks for a step's weights and rows.
template <class C>
__device__ __forceinline__ void copy_step(const MarlinGemmParams& params, char* stage, int step, int64_t first_row,
                                          int64_t first_n, const StepRanges& ranges, int first_part) {
  using T = typename C::T;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int kChunks = C::kRowsBytes / 16;
  static_assert(kChunks % C::kThreads == 0);
#pragma unroll
  for (int i = 0; i < kChunks / C::kThreads; ++i) {
    const int chunk = i * C::kThreads + static_cast<int>(threadIdx.x);
    const int column = chunk % C::kRowChunks, row = chunk / C::kRowChunks % C::kRows;
    const int depth_warp = chunk / (C::kRowChunks * C::kRows);
    const StepRange of_chunk = ranges.of(first_part + depth_warp);
    const int tile = of_chunk.begin + step * C::kTilesPerStep + column / 2;
    const bool inside = tile < of_chunk.end && first_row + row < params.m;
    const T* const from = static_cast<const T*>(params.gathered != nullptr ? params.gathered : params.a);
    const int64_t stride = params.gathered != nullptr ? params.k : params.a_stride;
    const int64_t offset =
        inside ? (first_row + row) * stride + static_cast<int64_t>(tile) * kMarlinTileK + column % 2 * 8 : 0;
    char* const to = stage + (depth_warp * C::kRows + row) * C::kRowBytes + swizzled<C>(row, column) * 16;
    copy_async<16>(to, from + offset, inside ? 16 : 0);
  }
  if (first_n >= params.n) return;
  const StepRange range = ranges.of(first_part + warp / C::kColumnWarps);
  char* const weights = stage + C::kRowsBytes + warp * C::kWarpWeightBytes;
#pragma unroll
  for (int u = 0; u < C::kTilesPerStep; ++u) {
    const int tile = range.begin + step * C::kTilesPerStep + u;
    if (tile >= range.end) break;
    const uint32_t* const from =
        params.weight + (tile * (params.n / kMarlinTileN) + first_n / kMarlinTileN) * C::kTileWords;
#pragma unroll
    for (int i = 0; i < C::kTileWords / 128; ++i) {
      const int chunk = i * 32 + lane;
      copy_async_16(weights + u * C::kTileWords * 4 + chunk * 16, from + chunk * 4);
    }
  }
}

// A warp's sums over its range of K.
template <class C>
class Sums {
 public:
  using T = typename C::T;

  __device__ __forceinline__ Sums(const MarlinGemmParams& params, int64_t first_n, StepRange range)
      : params_(params), first_n_(first_n), range_(range), tiles_per_group_(params.group_size / kMarlinTileK) {
    if (range.begin >= range.end || first_n >= params.n) return;
    if constexpr (C::kMode == Mode::kIrregular) {
      set_constant_bias();
    } else {
      group_ = range.begin / tiles_per_group_;
      left_ = static_cast<int>((group_ + 1) * tiles_per_group_ - range.begin);
      if (C::kHasZeros && C::kMode == Mode::kRegular) {
        if (params.zeros == nullptr) {
          set_constant_bias();
        } else {
          zeros_.load(params, group_, first_n, g());
        }
      }
      begin_group();
    }
  }

  // The tiles of a step that have arrived in `stage`.
  __device__ __forceinline__ void add_step(const char* stage, int step) {
    if (first_n_ >= params_.n) return;
    const int warp = threadIdx.x / 32;
    const char* const rows = stage + warp / C::kColumnWarps * C::kRows * C::kRowBytes;
    const char* const weights = stage + C::kRowsBytes + warp * C::kWarpWeightBytes;
#pragma unroll
    for (int u = 0; u < C::kTilesPerStep; ++u) {
      const int tile = range_.begin + step * C::kTilesPerStep + u;
      if (tile >= range_.end) break;
      add_tile(rows, weights + u * C::kTileWords * 4, u, tile);
    }
  }

  __device__ __forceinline__ void finish() {
    if (C::kMode != Mode::kIrregular && range_.begin < range_.end && first_n_ < params_.n) end_group();
  }

  float sums[C::kRowTiles][C::kColumnTiles][4] = {};

 private:
  __device__ __forceinline__ int g() const { return threadIdx.x % 32 / 4; }
  __device__ __forceinline__ int t() const { return threadIdx.x % 4; }

  __device__ __forceinline__ void set_constant_bias() {
    const uint32_t zero = params_.type == MarlinType::kU4B8 ? 8 : params_.type == MarlinType::kU8B128 ? 128 : 0;
#pragma unroll
    for (int j = 0; j < C::kColumnTiles; ++j) bias_[j] = zero_bias<T, C::kFormat>(zero);
  }

  // Asks for the group's scales, which are not used before its end, and sets its zero points, which were asked for
  // when the group before it began.
  __device__ __forceinline__ void begin_group() {
    scales_.load(params_, group_, first_n_, t());
    if constexpr (C::kMode == Mode::kFloatZeros) {
      const T* const zeros = static_cast<const T*>(params_.zeros) + group_ * params_.n + first_n_;
#pragma unroll
      for (int j = 0; j < C::kColumnTiles; ++j) {
        bias_[j] = bit_cast<uint16_t>(zeros[marlin_scale_place(g() + 8 * j, params_.many_groups)]) * 0x10001u;
      }
    } else if constexpr (C::kHasZeros) {
      if (params_.zeros == nullptr) return;
#pragma unroll
      for (int j = 0; j < C::kColumnTiles; ++j) bias_[j] = zero_bias<T, C::kFormat>(zeros_.value(j));
      if (group_ + 1 < params_.num_groups) zeros_.load(params_, group_ + 1, first_n_, g());
    }
  }

  // Adds the group's sums, scaled.
  __device__ __forceinline__ void end_group() {
#pragma unroll
    for (int j = 0; j < C::kColumnTiles; ++j) {
      const float first = Scales<C>::value(scales_.first, j), second = Scales<C>::value(scales_.second, j);
#pragma unroll
      for (int r = 0; r < C::kRowTiles; ++r) {
        float (&part)[4] = of_group_[r][j];
        sums[r][j][0] += part[0] * first;
        sums[r][j][1] += part[1] * second;
        sums[r][j][2] += part[2] * first;
        sums[r][j][3] += part[3] * second;
        part[0] = part[1] = part[2] = part[3] = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void add_tile(const char* rows, const char* weights, int u, int tile) {
    if constexpr (C::kMode != Mode::kIrregular) {
      if (left_ == 0) {
        end_group();
        ++group_;
        left_ = static_cast<int>(tiles_per_group_);
        begin_group();
      }
      --left_;
    }
    const int lane = threadIdx.x % 32;
    uint32_t a[C::kRowTiles][4];
#pragma unroll
    for (int r = 0; r < C::kRowTiles; ++r) {
      const int row = 16 * r + lane % 16, chunk = 2 * u + lane / 16;
      load_matrices(a[r], rows + row * C::kRowBytes + swizzled<C>(row, chunk) * 16);
    }
    uint32_t words[C::kBits];
#pragma unroll
    for (int i = 0; i < C::kBits / 4; ++i) {
      const uint4 four = *reinterpret_cast<const uint4*>(weights + lane * C::kBits * 4 + i * 16);
      words[4 * i] = four.x;
      words[4 * i + 1] = four.y;
      words[4 * i + 2] = four.z;
      words[4 * i + 3] = four.w;
    }
    // Of irregular groups the scales of rows 2t, 2t + 1, 2t + 8 and 2t + 9, each for the lane's columns g + 8j.
    uint4 row_scales[4];
    if constexpr (C::kMode == Mode::kIrregular) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = static_cast<int64_t>(tile) * kMarlinTileK + 2 * t() + i % 2 + i / 2 * 8;
        const T* const scales = static_cast<const T*>(params_.scales) + __ldg(params_.groups + row) * params_.n;
        row_scales[i] = __ldg(reinterpret_cast<const uint4*>(scales + first_n_) + g());
      }
    }
#pragma unroll
    for (int j = 0; j < C::kColumnTiles; ++j) {
      uint32_t b0, b1;
      const uint32_t word = C::kBits == 4 ? words[j / 2] : words[j % C::kBits];
      if constexpr (C::kMode == Mode::kFloatZeros) {
        decode<T, C::kFormat>(word, j % 2, kUnitPlace<T>, b0, b1);
        b0 = subtract_pairs<T>(b0, bias_[j]);
        b1 = subtract_pairs<T>(b1, bias_[j]);
      } else {
        decode<T, C::kFormat>(word, j % 2, bias_[j], b0, b1);
      }
      if constexpr (C::kMode == Mode::kIrregular) {
        b0 = multiply_pairs<T>(b0, pair_of(row_scales[0], row_scales[1], j));
        b1 = multiply_pairs<T>(b1, pair_of(row_scales[2], row_scales[3], j));
      }
#pragma unroll
      for (int r = 0; r < C::kRowTiles; ++r) {
        if constexpr (C::kMode == Mode::kIrregular) {
          mma_16x8x16<T>(sums[r][j], a[r], b0, b1);
        } else {
          mma_16x8x16<T>(of_group_[r][j], a[r], b0, b1);
        }
      }
    }
  }

  // The jth number of each of two vectors of eight.
  static __device__ __forceinline__ uint32_t pair_of(const uint4& first, const uint4& second, int j) {
    const uint32_t a[4] = {first.x, first.y, first.z, first.w}, b[4] = {second.x, second.y, second.z, second.w};
    return __byte_perm(a[j / 2], b[j / 2], j % 2 == 0 ? 0x5410 : 0x7632);
  }

  const MarlinGemmParams& params_;
  const int64_t first_n_;
  const StepRange range_;
  const int64_t tiles_per_group_;
  int64_t group_ = 0;
  int left_ = 0;  // tiles of the group
  Scales<C> scales_;
  Zeros<C> zeros_;
  uint32_t bias_[C::kColumnTiles] = {};
  float of_group_[C::kRowTiles][C::kColumnTiles][4] = {};
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kRowTiles == 1 ? 2 : 1)
    marlin_gemm_kernel(const __grid_constant__ MarlinGemmParams params, unsigned row_blocks) {
  using T = typename C::T;
  extern __shared__ __align__(16) char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int column_warp = warp % C::kColumnWarps, depth_warp = warp / C::kColumnWarps;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x % row_blocks) * C::kRows;
  const int64_t first_n =
      static_cast<int64_t>(blockIdx.x / row_blocks) * kMixedTileColumns + column_warp * kMarlinTileN;
  // The depth warps of a block have consecutive ranges of tiles.
  const StepRanges ranges(static_cast<int>(params.k / kMarlinTileK), static_cast<int>(gridDim.z) * C::kDepthWarps);
  const int first_part = static_cast<int>(blockIdx.z) * C::kDepthWarps;
  const int steps = (ranges.longest() + C::kTilesPerStep - 1) / C::kTilesPerStep;  // of all warps: barriers agree

#pragma unroll
  for (int step = 0; step < C::kStages - 1; ++step) {
    if (step < steps) {
      copy_step<C>(params, shared + step * C::kStageBytes, step, first_row, first_n, ranges, first_part);
    }
    commit_copies();
  }
  Sums<C> warp_sums(params, first_n, ranges.of(first_part + depth_warp));
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<C::kStages - 2>();
    __syncthreads();  // the step's copies are seen by all; the stage before it is free
    const int next = step + C::kStages - 1;
    if (next < steps) {
      copy_step<C>(params, shared + next % C::kStages * C::kStageBytes, next, first_row, first_n, ranges, first_part);
    }
    commit_copies();
    warp_sums.add_step(shared + step % C::kStages * C::kStageBytes, step);
  }
  warp_sums.finish();
  release_successors();

  wait_for_copies<0>();
  __syncthreads();  // no stage is in use
  float4* const all = reinterpret_cast<float4*>(shared);
  constexpr int kWarpSums = C::kRowTiles * C::kColumnTiles * 32;
#pragma unroll
  for (int r = 0; r < C::kRowTiles; ++r) {
#pragma unroll
    for (int j = 0; j < C::kColumnTiles; ++j) {
      const float (&sum)[4] = warp_sums.sums[r][j];
      all[warp * kWarpSums + (r * C::kColumnTiles + j) * 32 + lane] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
  }
  __syncthreads();
  if (first_n >= params.n) return;

  const float factor = mixed_mm::result_factor(static_cast<const T*>(params.global_scale),
                                               C::kFormat == Format::kE2M1 ? kIsHalf<T> ? 0x1p-14f : 0x1p-126f : 1.0f);
  constexpr int kShare = C::kColumnTiles / C::kDepthWarps;  // each depth warp adds up some of the columns
#pragma unroll
  for (int r = 0; r < C::kRowTiles; ++r) {
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const int j = depth_warp * kShare + i;
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int depth = 0; depth < C::kDepthWarps; ++depth) {
        const float4 part_sum =
            all[(depth * C::kColumnWarps + column_warp) * kWarpSums + (r * C::kColumnTiles + j) * 32 + lane];
        sum.x += part_sum.x;
        sum.y += part_sum.y;
        sum.z += part_sum.z;
        sum.w += part_sum.w;
      }
      const int64_t row = first_row + 16 * r + lane / 4, column = first_n + 8 * j + lane % 4 * 2;
      const int64_t at = row * params.n + column, below = at + 8 * params.n;
      if (params.partials != nullptr) {
        float* const partials = params.partials + static_cast<int64_t>(blockIdx.z) * params.m * params.n;
        if (row < params.m) *reinterpret_cast<float2*>(partials + at) = make_float2(sum.x, sum.y);
        if (row + 8 < params.m) *reinterpret_cast<float2*>(partials + below) = make_float2(sum.z, sum.w);
      } else {
        T* const result = static_cast<T*>(params.result);
        using mixed_mm::Pair;
        using mixed_mm::to_pair;
        if (row < params.m) *reinterpret_cast<Pair<T>*>(result + at) = to_pair<T>(sum.x * factor, sum.y * factor);
        if (row + 8 < params.m) {
          *reinterpret_cast<Pair<T>*>(result + below) = to_pair<T>(sum.z * factor, sum.w * factor);
        }
      }
    }
  }
}

}  // namespace sgl_kernel::SGL_TARGET::marlin
