// gptq_gemm on Hopper: few tokens of the weights that servers have, 4-bit ones in gptq_shuffle's order, go through
// few_tokens_mm_sm90a.cuh (which says grid and bound), the rest through the portable kernels.
//
// Measured on an H200, 2026-11-23, groups of 128, in µs; the best peer's (sgl-kernel 0.4.2) in the same day's:
//   N x K       9216 x 4096   4096 x 8192   3072 x 4096   4096 x 1536   7168 x 16384
//   1 token     17.4          14.3          8.0           4.6           41.8
//   8 tokens    18.2          15.5          8.6           5.1           42.8
//   peer, 1     11.8          11.9          10.1          7.2           24.5
#include "kernels/device/mma_16bit.cuh"
#include "kernels/gemm/few_tokens_mm_sm90a.cuh"
#include "kernels/gemm/gptq_gemm_portable.h"
#include "kernels/gemm/mixed_mm_splits.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr char kName[] = "gptq_gemm";
constexpr int64_t kFewTokens = 8;  // more were slower than in the portable kernel (H200, 2026-11-23)
constexpr int kTile = 32;  // rows, and columns, that a warp's lanes share out: eight rows by four columns a lane

// A lane has the columns 4g to 4g + 3 of each kTile, and of each kTile along K the run of eight numbers from 8t on. An
// instruction does not mind the order of K: its first half is the run's first half, and so on.
// kParts: groups along K in a step.
template <int kParts>
class GptqWeight {
 public:
  using Params = GptqGemmParams;
  using Sum = float;
  static constexpr int kHalves = 2, kColumnBlocks = 2 * kHalves;  // halves of the columns
  static constexpr int kBits = 4, kTiles = 2, kStepK = kTiles * kTile;
  static constexpr int kColumnWarps = 4, kTokenBytes = 2, kPadBytes = 64;
  static constexpr bool kSameBits = false;

  struct Step {
    uint4 words[kTiles][kHalves];     // of four columns
    uint2 scales[kParts][kHalves];    // "
    uint32_t zeros[kParts][kHalves];  // " in the word's lower or upper half
  };

  // Of the steps first_step, first_step + stride, …
  __device__ __forceinline__ GptqWeight(const Params& params, int64_t block_column, int column_warp, int first_step,
                                        int stride)
      : params_(params),
        first_column_(block_column + column_warp * kTile * kHalves + threadIdx.x % 32 / 4 * 4),
        tiles_per_group_(static_cast<int>(params.k / params.num_groups / kTile)),
        tile_(first_step * kTiles),
        tile_stride_(stride * kTiles),
        words_(params.weight + static_cast<int64_t>(tile_ * kBits + threadIdx.x % 4) * params.n + first_column_) {}

  __device__ __forceinline__ void start() {}

  __device__ __forceinline__ bool has_columns() const { return first_column_ - threadIdx.x % 32 / 4 * 4 < params_.n; }

  static __device__ __forceinline__ void prefetch(const Params& params, int64_t first_column, int columns, int begin,
                                                  int end) {
    constexpr int kRows = kStepK * kBits / 32;  // of words, a step
    const int bytes = static_cast<int>(min(int64_t{columns}, params.n - first_column)) * 4;
    const int last = static_cast<int>(min(int64_t{end} * kRows, params.k * kBits / 32));
    const int most = begin * kRows + few_tokens::kPrefetchBytes / (columns * 4);
    for (int row = begin * kRows + few_tokens::spread_thread(); row < min(last, most); row += blockDim.x) {
      few_tokens::prefetch_bulk_to_l2(params.weight + row * params.n + first_column, bytes);
    }
  }

  template <class C>
  static __device__ __forceinline__ void stage_tokens(const Params& params, char* stage, int64_t first_row, int begin,
                                                      int end) {
    few_tokens::copy_tokens<C>(params,
                               static_cast<const char*>(params.gathered != nullptr ? params.gathered : params.a),
                               params.k * kTokenBytes, stage, first_row, begin, end);
  }

  // The next step.
  __device__ __forceinline__ void load(Step& step) {
    const int num_tiles = static_cast<int>(params_.k / kTile);
    const uint32_t* words = words_;
#pragma unroll
    for (int u = 0; u < kTiles; ++u) {
      const int part = u * kParts / kTiles;
      const bool begins = u * kParts % kTiles == 0;
      const int64_t group = begins ? tiles_per_group_.divide(min(tile_ + u, num_tiles - 1)) : 0;
      const int64_t at = group * params_.n + first_column_;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const bool there = first_column_ + kTile * half < params_.n;
        const bool inside = there && tile_ + u < num_tiles;
        step.words[u][half] =
            inside ? __ldg(reinterpret_cast<const uint4*>(words + kTile * half)) : make_uint4(0, 0, 0, 0);
        if (!begins) continue;
        const __half* const scales = static_cast<const __half*>(params_.scales) + at + kTile * half;
        step.scales[part][half] = there ? __ldg(reinterpret_cast<const uint2*>(scales)) : make_uint2(0, 0);
        step.zeros[part][half] = there ? __ldg(params_.zeros + (at + kTile * half) * kBits / 32) : 0;
      }
      words += kBits * params_.n;
    }
    tile_ += tile_stride_;
    words_ += static_cast<int64_t>(tile_stride_) * kBits * params_.n;
  }

  template <int kTokenTiles>
  __device__ __forceinline__ void add(const Step& step, const char* tokens, int pitch,
                                      float (&sums)[kColumnBlocks][kTokenTiles][4]) const {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int u = 0; u < kTiles; ++u) {
      const int part = u * kParts / kTiles;
      uint4 right[kTokenTiles];
#pragma unroll
      for (int r = 0; r < kTokenTiles; ++r) {
        right[r] = *reinterpret_cast<const uint4*>(tokens + (8 * r + g) * pitch + u * (kTile * kTokenBytes) + t * 16);
      }
#pragma unroll
      for (int block = 0; block < kColumnBlocks; ++block) {
        const int half = block / 2, first = block % 2 * 2;  // of the four columns
        const uint4& words = step.words[u][half];
        const uint32_t zeros = step.zeros[part][half] >> g % 2 * 16;
        float of_tile[kTokenTiles][4] = {};
#pragma unroll
        for (int run = 0; run < 2; ++run) {
          uint32_t left[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            left[i] = weights(words, first + i % 2, 2 * run + i / 2, zeros);
          }
#pragma unroll
          for (int r = 0; r < kTokenTiles; ++r) {
            mma_16x8x16<__half>(of_tile[r], left, run == 0 ? right[r].x : right[r].z,
                                run == 0 ? right[r].y : right[r].w);
          }
        }
        const uint32_t pair = first == 0 ? step.scales[part][half].x : step.scales[part][half].y;
        const float2 scale = __half22float2(*reinterpret_cast<const __half2*>(&pair));
#pragma unroll
        for (int r = 0; r < kTokenTiles; ++r) {
          sums[block][r][0] += of_tile[r][0] * scale.x;
          sums[block][r][1] += of_tile[r][1] * scale.x;
          sums[block][r][2] += of_tile[r][2] * scale.y;
          sums[block][r][3] += of_tile[r][3] * scale.y;
        }
      }
    }
  }

  static __device__ __forceinline__ int column_of(int column_warp, int block, int lower, int g) {
    return kTile * (column_warp * kHalves + block / 2) + 4 * g + block % 2 * 2 + lower;
  }

  static __device__ __forceinline__ void store(const Params& params, int64_t row, int64_t column,
                                               const float (&sum)[4]) {
    __half2* const to = reinterpret_cast<__half2*>(static_cast<__half*>(params.result) + row * params.n + column);
    to[0] = __floats2half2_rn(sum[0], sum[1]);
    to[1] = __floats2half2_rn(sum[2], sum[3]);
  }

 private:
  // Numbers 2 * pair and 2 * pair + 1 of the run of a column (of the four), less their zero point. As f16, 1024 plus a
  // number is a matter of bits, and the difference is exact.
  static __device__ __forceinline__ uint32_t weights(const uint4& four, int column, int pair, uint32_t zeros) {
    const uint32_t word = column == 0 ? four.x : column == 1 ? four.y : column == 2 ? four.z : four.w;
    constexpr uint32_t kUnitPlace = 0x64006400, kMask = 0x000f000f;
    // (word & kMask) | kUnitPlace in one instruction, which the compiler makes two of.
    uint32_t biased;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(biased) : "r"(word >> 4 * pair), "r"(kMask), "r"(kUnitPlace));
    // One more than the zero point that is stored.
    const uint32_t zero = kUnitPlace + ((zeros >> kBits * column & 0xf) + 1) * 0x10001u;
    const __half2 difference =
        __hsub2(*reinterpret_cast<const __half2*>(&biased), *reinterpret_cast<const __half2*>(&zero));
    return *reinterpret_cast<const uint32_t*>(&difference);
  }

  const Params& params_;
  const int64_t first_column_;  // of this lane's
  const few_tokens::SmallDivisor tiles_per_group_;
  int tile_;
  const int tile_stride_;
  const uint32_t* words_;  // this lane's of tile_
};

bool few_tokens_take(const GptqGemmParams& params) {
  return params.m <= kFewTokens && params.n <= few_tokens::kMostColumns && params.k > 0 &&
         params.k / kTile < few_tokens::kSmallNumber && params.groups == nullptr &&
         params.k / params.num_groups % kTile == 0 && params.num_bits == 4 && params.shuffled;
}

}  // namespace

Status multiply_gptq(const GptqGemmParams& params, Stream stream) {
  if (!few_tokens_take(params)) return multiply_gptq_portable(params, stream);
  if (params.gathered != nullptr) {
    SGL_RETURN_IF_ERROR(mixed_mm::gather_columns(kName, params.gathered, params.a, params.k, params.columns, params.m,
                                                 params.k, stream));
  }
  constexpr int kTokenTiles = kFewTokens / 8;
  if (params.k / params.num_groups % GptqWeight<1>::kStepK != 0) {
    return few_tokens::multiply<few_tokens::Config<GptqWeight<2>, kTokenTiles>>(kName, params, stream);
  }
  return few_tokens::multiply<few_tokens::Config<GptqWeight<1>, kTokenTiles>>(kName, params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
