// Marlin's 4-bit integers for few_tokens_mm_sm90a.cuh. The operand B that Marlin's tiles hold for two n8 tiles of an
// instruction is the operand A of 16 columns, as it is.
#pragma once

#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/mma_int8.cuh"
#include "kernels/gemm/few_tokens_mm_sm90a.cuh"
#include "kernels/gemm/marlin_gemm_decode.cuh"
#include "kernels/gemm/marlin_layout.h"

namespace sgl_kernel::SGL_TARGET::marlin {

// kZeros: whether there are zero points other than the type's. kParts: scales along K in a step.
template <class T, bool kZeros, int kParts>
class FewTokensWeight {
 public:
  using Params = MarlinGemmParams;
  using Sum = float;
  static constexpr Format kFormat = Format::kInt4;
  static constexpr int kBits = bits_of(kFormat), kColumnBlocks = kMarlinTileN / 16;
  static constexpr int kTiles = 4, kStepK = kTiles * kMarlinTileK, kTilesOfPart = kTiles / kParts;
  static constexpr int kTileWords = kMarlinTileK * kMarlinTileN * kBits / 32;
  static constexpr int kColumnWarps = 4, kTokenBytes = 2, kPadBytes = 16;
  static constexpr bool kSameBits = false;

  struct Step {
    uint4 words[kTiles];
    uint4 scales[kParts];
    uint32_t zeros[kParts];  // of the columns g + 8i
  };

  // Of the steps first_step, first_step + stride, …
  __device__ __forceinline__ FewTokensWeight(const Params& params, int64_t block_column, int column_warp,
                                             int first_step, int stride)
      : params_(params),
        first_column_(block_column + column_warp * kMarlinTileN),
        tiles_per_group_(static_cast<int>(params.group_size / kMarlinTileK)),
        tile_(first_step * kTiles),
        tile_stride_(stride * kTiles),
        row_bytes_(params.n / kMarlinTileN * (kTileWords * 4)),
        words_(reinterpret_cast<const char*>(params.weight) + tile_ * row_bytes_ +
               first_column_ / kMarlinTileN * (kTileWords * 4) + threadIdx.x % 32 * (kBits * 4)) {
    constant_bias_ = zero_bias<T, kFormat>(params.type == MarlinType::kU4B8 ? 8 : 0);
  }

  __device__ __forceinline__ void start() {
    if (!params_.many_groups && has_columns()) {
      // One group's scales: eight numbers are the columns 2 * (g / 2) and the one after it, of four i in turn.
      const uint4* const scales =
          reinterpret_cast<const uint4*>(static_cast<const T*>(params_.scales) + first_column_) + g() / 2;
      const uint4 a = __ldg(scales), b = __ldg(scales + 4);
      const int selector = g() % 2 == 0 ? 0x5410 : 0x7632;
      one_group_ = make_uint4(__byte_perm(a.x, a.y, selector), __byte_perm(a.z, a.w, selector),
                              __byte_perm(b.x, b.y, selector), __byte_perm(b.z, b.w, selector));
    }
  }

  __device__ __forceinline__ bool has_columns() const { return first_column_ < params_.n; }

  static __device__ __forceinline__ void prefetch(const Params& params, int64_t first_column, int columns, int begin,
                                                  int end) {
    constexpr int kTileBytes = kTileWords * 4;
    const int64_t tiles_across = params.n / kMarlinTileN;
    const int across =
        static_cast<int>(min(static_cast<int64_t>(columns / kMarlinTileN), tiles_across - first_column / kMarlinTileN));
    const int last = static_cast<int>(min(int64_t{end} * kTiles, params.k / kMarlinTileK));
    const int most = begin * kTiles + few_tokens::kPrefetchBytes / (columns / kMarlinTileN * kTileBytes);
    for (int tile = begin * kTiles + few_tokens::spread_thread(); tile < min(last, most); tile += blockDim.x) {
      few_tokens::prefetch_bulk_to_l2(params.weight + (tile * tiles_across + first_column / kMarlinTileN) * kTileWords,
                                      across * kTileBytes);
    }
  }

  template <class C>
  static __device__ __forceinline__ void stage_tokens(const Params& params, char* stage, int64_t first_row, int begin,
                                                      int end) {
    const bool gathers = params.gathered != nullptr;
    few_tokens::copy_tokens<C>(params, static_cast<const char*>(gathers ? params.gathered : params.a),
                               (gathers ? params.k : params.a_stride) * kTokenBytes, stage, first_row, begin, end);
  }

  // The next step.
  __device__ __forceinline__ void load(Step& step) {
    const int num_tiles = static_cast<int>(params_.k / kMarlinTileK);
    const char* row = words_;
    const bool whole = tile_ + kTiles <= num_tiles;
#pragma unroll
    for (int u = 0; u < kTiles; ++u) {
      if (whole || tile_ + u < num_tiles) {
        step.words[u] = __ldg(reinterpret_cast<const uint4*>(row));
      } else {
        step.words[u] = make_uint4(0, 0, 0, 0);
      }
      row += row_bytes_;
    }
    if (kZeros || params_.many_groups) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int tile = min(tile_ + part * kTilesOfPart, num_tiles - 1);
        const int64_t group = tiles_per_group_.divide(tile);
        const int64_t at = group * params_.n + first_column_;
        if (params_.many_groups) {
          step.scales[part] = __ldg(reinterpret_cast<const uint4*>(static_cast<const T*>(params_.scales) + at) + g());
        }
        if constexpr (kZeros) {
          step.zeros[part] = __ldg(static_cast<const uint32_t*>(params_.zeros) + at * kBits / 32 + g());
        }
      }
    }
    tile_ += tile_stride_;
    words_ += tile_stride_ * row_bytes_;
  }

  // `tokens`: those of the step in shared memory.
  template <int kTokenTiles>
  __device__ __forceinline__ void add(const Step& step, const char* tokens, int pitch,
                                      float (&sums)[kColumnBlocks][kTokenTiles][4]) const {
    const int lane = threadIdx.x % 32;
    uint32_t right[kTokenTiles][kTiles / 2][4];  // b0 and b1 of a tile, then of the next
#pragma unroll
    for (int r = 0; r < kTokenTiles; ++r) {
#pragma unroll
      for (int pair = 0; pair < kTiles / 2; ++pair) {
        load_matrices(right[r][pair], tokens + (8 * r + lane % 8) * pitch + pair * 64 + lane / 8 * 16);
      }
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int block = 0; block < kColumnBlocks; ++block) {
        uint32_t bias[2] = {constant_bias_, constant_bias_};
        if constexpr (kZeros) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const uint32_t zero = step.zeros[part] >> marlin_zero_bit(kBits, 2 * block + e) & 0xf;
            bias[e] = zero_bias<T, kFormat>(zero);
          }
        }
        float of_part[kTokenTiles][4] = {};
#pragma unroll
        for (int u = part * kTilesOfPart; u < (part + 1) * kTilesOfPart; ++u) {
          uint32_t left[4];  // rows g and g + 8, then 8 further along K
          decode<T, kFormat>(word_of(step.words[u], block), 0, bias[0], left[0], left[2]);
          decode<T, kFormat>(word_of(step.words[u], block), 1, bias[1], left[1], left[3]);
#pragma unroll
          for (int r = 0; r < kTokenTiles; ++r) {
            mma_16x8x16<T>(of_part[r], left, right[r][u / 2][u % 2 * 2], right[r][u / 2][u % 2 * 2 + 1]);
          }
        }
        const float upper = scale_of(step, part, 2 * block), lower = scale_of(step, part, 2 * block + 1);
#pragma unroll
        for (int r = 0; r < kTokenTiles; ++r) {
          sums[block][r][0] += of_part[r][0] * upper;
          sums[block][r][1] += of_part[r][1] * upper;
          sums[block][r][2] += of_part[r][2] * lower;
          sums[block][r][3] += of_part[r][3] * lower;
        }
      }
    }
  }

  static __device__ __forceinline__ int column_of(int column_warp, int block, int lower, int g) {
    return 16 * (column_warp * kColumnBlocks + block) + 8 * lower + g;
  }

  static __device__ __forceinline__ void store(const Params& params, int64_t row, int64_t column,
                                               const float (&sum)[4]) {
    using mixed_mm::Pair;
    Pair<T>* const to = reinterpret_cast<Pair<T>*>(static_cast<T*>(params.result) + row * params.n + column);
    to[0] = mixed_mm::to_pair<T>(sum[0], sum[1]);
    to[1] = mixed_mm::to_pair<T>(sum[2], sum[3]);
  }

 private:
  __device__ __forceinline__ int g() const { return threadIdx.x % 32 / 4; }

  // The word of a block of 16 columns: two n8 tiles.
  static __device__ __forceinline__ uint32_t word_of(const uint4& words, int block) {
    return block == 0 ? words.x : block == 1 ? words.y : block == 2 ? words.z : words.w;
  }

  // Of the columns g + 8i.
  __device__ __forceinline__ float scale_of(const Step& step, int part, int i) const {
    const uint4& eight = params_.many_groups ? step.scales[part] : one_group_;
    const uint32_t word = i / 2 == 0 ? eight.x : i / 2 == 1 ? eight.y : i / 2 == 2 ? eight.z : eight.w;
    return static_cast<float>(bit_cast<T>(static_cast<uint16_t>(word >> 16 * (i % 2))));
  }

  const Params& params_;
  const int64_t first_column_;
  const few_tokens::SmallDivisor tiles_per_group_;
  int tile_;
  const int tile_stride_;
  const int64_t row_bytes_;
  const char* words_;  // this lane's of tile_
  uint32_t constant_bias_ = 0;
  uint4 one_group_ = {};
};

}  // namespace sgl_kernel::SGL_TARGET::marlin
