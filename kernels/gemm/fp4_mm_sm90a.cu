// NVFP4 products on Hopper: few tokens go through few_tokens_mm_sm90a.cuh, others through fp4_mm_many_tokens_sm90a.cu
// (both say grid and bound). Both widen to f16. What their loads do not take goes through the portable kernel.
//
// Measured on an H200, 2026-11-23, in µs:
//   N x K                 9216 x 4096   4096 x 8192   4096 x 1536   7168 x 16384
//   1 token               22.2          17.7          5.4           59.5
//   16 tokens             20.6          21.2          7.7           39.3
//   64 tokens             22.8          22.5          8.7           43.1
//   1024 tokens           112           87.3          20.8          317
#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/gemm/few_tokens_mm_sm90a.cuh"
#include "kernels/gemm/fp4_mm_portable.h"
#include "kernels/gemm/fp4_mm_sm90a.h"
#include "kernels/gemm/fp4_mm_widen.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int64_t kMostTokens = 64;  // what the kernel for few is made for
constexpr int kBlockBytes = kFp4Block / 2;

// A step is a tile of scales wide, so that a lane has a block of 16 values along K: the one at t, of the columns
// 32 q + 16 * column warp + 8 h + g of the tile's 128. A tile of scales has those of the four q side by side.
template <class Output>
class Fp4Weight {
 public:
  using Params = Fp4MmParams;
  using Sum = float;
  static constexpr int kQuarters = 4, kHalves = 2, kColumnBlocks = kQuarters * kHalves / 2;
  static constexpr int kStepK = kScaleTileColumns * kFp4Block;
  static constexpr int kColumnWarps = 2, kTokenBytes = 2, kPadBytes = 16;  // tokens are widened to f16 before
  static constexpr bool kSameBits = false;
  static_assert(16 * kColumnBlocks * kColumnWarps == kScaleTileRows);

  struct Step {
    uint2 values[kQuarters][kHalves];
    uint4 scales[kHalves];
  };

  // Of the steps first_step, first_step + stride, …
  __device__ __forceinline__ Fp4Weight(const Params& params, int64_t block_column, int column_warp, int first_step,
                                       int stride)
      : params_(params),
        first_row_(block_column),
        first_in_quarter_(16 * column_warp + threadIdx.x % 32 / 4),
        step_(first_step),
        stride_(stride) {}

  __device__ __forceinline__ void start() {}

  __device__ __forceinline__ bool has_columns() const { return true; }

  static __device__ __forceinline__ void prefetch(const Params& params, int64_t first_column, int columns, int begin,
                                                  int end) {
    constexpr int kStepBytes = kStepK / 2;
    const int64_t row = first_column + threadIdx.x;
    if (static_cast<int>(threadIdx.x) >= columns || row >= params.n) return;
    // Rows are multiples of 16 bytes apart, and may end within the last 16.
    const int64_t bytes = min(int64_t{end} * kStepBytes, params.k / 2) / 16 * 16 - int64_t{begin} * kStepBytes;
    if (bytes <= 0) return;
    prefetch_bulk_to_l2(params.b.values + row * params.b.stride + int64_t{begin} * kStepBytes,
                        static_cast<uint32_t>(min(bytes, static_cast<int64_t>(few_tokens::kPrefetchBytes / columns))));
  }

  template <class C>
  static __device__ __forceinline__ void stage_tokens(const Params& params, char* stage, int64_t first_row, int begin,
                                                      int end) {
    constexpr int kBlocks = C::kStageK / kFp4Block, kBytes = kFp4Block * kTokenBytes;
    const int rows = static_cast<int>(min(int64_t{C::kTokens}, params.m - first_row));
    const int64_t first_block = int64_t{begin} * kScaleTileColumns;
    const int blocks = static_cast<int>(min(int64_t{end} * kScaleTileColumns - first_block, int64_t{kBlocks}));
#pragma unroll 4
    for (int i = threadIdx.x; i < rows * kBlocks; i += C::kThreads) {
      const int64_t row = first_row + i / kBlocks, block = first_block + i % kBlocks;
      if (i % kBlocks >= blocks) continue;
      uint2 values = make_uint2(0, 0);
      uint32_t scale = 0;
      if (block < params.k / kFp4Block) {
        values = __ldg(reinterpret_cast<const uint2*>(params.a.values + row * params.a.stride + block * kBlockBytes));
        scale = scale_pair(half_of_e4m3(__ldg(params.a.scales + fp4_scale_at(row, block, params.padded_blocks))), 0);
      }
      uint32_t low[4], high[4];
      widen(values.x, scale, low);
      widen(values.y, scale, high);
      uint4* const to = reinterpret_cast<uint4*>(stage + i / kBlocks * C::kPitch + i % kBlocks * kBytes);
      to[0] = make_uint4(low[0], low[1], low[2], low[3]);
      to[1] = make_uint4(high[0], high[1], high[2], high[3]);
    }
  }

  __device__ __forceinline__ void load(Step& step) {
    const int index = step_;
    step_ += stride_;
    const int64_t block = static_cast<int64_t>(index) * kScaleTileColumns + threadIdx.x % 4;
    const int64_t tile = first_row_ / kScaleTileRows * (params_.padded_blocks / kScaleTileColumns) + index;
    const bool inside = block < params_.k / kFp4Block;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const int in_quarter = first_in_quarter_ + 8 * half;
      step.scales[half] = __ldg(reinterpret_cast<const uint4*>(params_.b.scales + tile * kScaleTileBytes) + in_quarter);
#pragma unroll
      for (int quarter = 0; quarter < kQuarters; ++quarter) {
        const int64_t row = first_row_ + kScaleTileRows / kQuarters * quarter + in_quarter;
        const uint8_t* const from = params_.b.values + row * params_.b.stride + block * kBlockBytes;
        step.values[quarter][half] =
            inside && row < params_.n ? __ldg(reinterpret_cast<const uint2*>(from)) : make_uint2(0, 0);
      }
    }
    if (!inside) step.scales[0] = step.scales[1] = make_uint4(0, 0, 0, 0);  // those of no block may be anything
  }

  template <int kTokenTiles>
  __device__ __forceinline__ void add(const Step& step, const char* tokens, int pitch,
                                      float (&sums)[kColumnBlocks][kTokenTiles][4]) const {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    uint4 right[kTokenTiles][2];
#pragma unroll
    for (int r = 0; r < kTokenTiles; ++r) {
      const uint4* const from =
          reinterpret_cast<const uint4*>(tokens + (8 * r + g) * pitch + t * (kFp4Block * kTokenBytes));
      right[r][0] = from[0];
      right[r][1] = from[1];
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      // Byte t of each quarter's four blocks.
      const uint4& all = step.scales[half];
      const uint32_t take = t | (4 + t) << 4;
      const HalfPairs scales =
          half_of_e4m3(__byte_perm(__byte_perm(all.x, all.y, take), __byte_perm(all.z, all.w, take), 0x5410));
#pragma unroll
      for (int pair = 0; pair < kQuarters / 2; ++pair) {
        const uint32_t upper_scale = scale_pair(scales, 2 * pair), lower_scale = scale_pair(scales, 2 * pair + 1);
        const uint2 &upper = step.values[2 * pair][half], &lower = step.values[2 * pair + 1][half];
#pragma unroll
        for (int word = 0; word < 2; ++word) {
          uint32_t above[4], below[4];
          widen(word == 0 ? upper.x : upper.y, upper_scale, above);
          widen(word == 0 ? lower.x : lower.y, lower_scale, below);
#pragma unroll
          for (int r = 0; r < kTokenTiles; ++r) {
            const uint4& four = right[r][word];
            mma_16x8x16<__half>(sums[2 * half + pair][r], {above[0], below[0], above[1], below[1]}, four.x, four.y);
            mma_16x8x16<__half>(sums[2 * half + pair][r], {above[2], below[2], above[3], below[3]}, four.z, four.w);
          }
        }
      }
    }
  }

  static __device__ __forceinline__ int column_of(int column_warp, int block, int lower, int g) {
    return kScaleTileRows / kQuarters * (block % 2 * 2 + lower) + 16 * column_warp + 8 * (block / 2) + g;
  }

  static __device__ __forceinline__ void store(const Params& params, int64_t row, int64_t column,
                                               const float (&sum)[4]) {
    const float factor = kProductFactor * *params.alpha;
    Output* const to = static_cast<Output*>(params.output) + row * params.output_stride + column;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (column + e < params.n) to[e] = from_float<Output>(sum[e] * factor);
    }
  }

 private:
  const Params& params_;
  const int64_t first_row_;     // of the tile of scales
  const int first_in_quarter_;  // of its quarters of 32 rows: this lane's for the first half
  int step_;
  const int stride_;
};

bool few_tokens_take(const Fp4MmParams& params) {
  constexpr uintptr_t kAlignment = 16;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(params.a.values) | reinterpret_cast<uintptr_t>(params.b.values) |
                         static_cast<uintptr_t>(params.a.stride) | static_cast<uintptr_t>(params.b.stride);
  return params.m <= kMostTokens && params.n <= few_tokens::kMostColumns && params.k > 0 && bits % kAlignment == 0;
}

}  // namespace

Status fp4_mm(const Fp4MmParams& params, Stream stream) {
  if (fp4_many_tokens_takes(params)) return multiply_fp4_many_tokens(params, stream);
  if (!few_tokens_take(params)) return fp4_mm_portable(params, stream);
  const char* const name = params.operator_name;
  return params.output_dtype == DType::kF16 ? few_tokens::multiply_few<Fp4Weight<__half>>(name, params, stream)
                                            : few_tokens::multiply_few<Fp4Weight<__nv_bfloat16>>(name, params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
