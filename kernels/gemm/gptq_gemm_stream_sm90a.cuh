// 4-bit weights in gptq_shuffle's order for stream_mm_sm90a.cuh.
#pragma once

#include "kernels/device/mma_16bit.cuh"
#include "kernels/gemm/gptq_gemm_params.h"
#include "kernels/gemm/stream_mm_sm90a.cuh"

namespace sgl_kernel::SGL_TARGET::gptq_stream {

struct Params : GptqGemmParams {
  int group_size;  // K / G, a multiple of 32

  __device__ __forceinline__ const void* tokens() const { return gathered != nullptr ? gathered : a; }
  __device__ __forceinline__ int64_t token_stride() const { return k * 2; }
};

inline constexpr int kBits = 4, kBlock = 32;    // columns of a box: a lane has four
inline constexpr int kRowNumbers = 32 / kBits;  // numbers along K of a row of words

// A lane has the columns 4g to 4g + 3 of each kBlock, and along K of each 32 a word's eight numbers, that of t.
//
// kHalves: a warp's columns, in kBlock. kNarrow: groups are no multiples of a step, but of 32; two lanes then meet in a
// bank. With few tokens numbers are not made floats: they are multiplied as they lie in their words, as subnormal ones,
// and the zero point times the tokens' sum is subtracted from the group's sum.
template <int kTokenTiles_, int kHalves_, int kStages_, int kBlocks_, bool kNarrow>
class Weight {
 public:
  using Params = gptq_stream::Params;
  static constexpr int kTokenTiles = kTokenTiles_, kHalves = kHalves_, kStages = kStages_, kBlocks = kBlocks_;
  static constexpr int kColumns = kBlock * kHalves;
  static constexpr bool kFolds = kTokenTiles == 1;
  static constexpr int kStepK = 128, kTiles = kStepK / 32;
  static constexpr int kStepRows = kStepK / kRowNumbers, kHalfBytes = kStepRows * kSwizzleBytes;
  static constexpr int kStepBytes = kHalves * kHalfBytes;
  static constexpr double kStepMicroseconds = kTokenTiles == 1   ? (kHalves == 1 ? 0.85 : 1.85)
                                              : kTokenTiles == 2 ? 1.4
                                              : kTokenTiles == 4 ? 1.2
                                                                 : 2.4;

  static Status encode_map(const char* operator_name, CUtensorMap* map, const Params& params) {
    constexpr int kHalfWords = 2;  // elements of the map are 16 bits wide
    const uint64_t row_bytes = static_cast<uint64_t>(params.n) * sizeof(uint32_t);
    return encode_tensor_map(operator_name, map,
                             {.data = const_cast<uint32_t*>(params.weight),
                              .extents = {kBlock * kHalfWords, static_cast<uint64_t>(params.k / kRowNumbers),
                                          static_cast<uint64_t>(params.n / kBlock), 1, 1},
                              .strides = {row_bytes, kSwizzleBytes, row_bytes, row_bytes},
                              .box = {kBlock * kHalfWords, kStepRows, kHalves, 1, 1}},
                             /*is_bf16=*/false);
  }

  static __device__ __forceinline__ void load(void* to, const CUtensorMap* map, Barrier* barrier, int64_t first_column,
                                              int step) {
    load_box(to, map, barrier, 0, step * kStepRows, static_cast<int>(first_column / kBlock), 0, 0);
  }
  static __device__ __forceinline__ void prefetch(const CUtensorMap* map, int64_t first_column, int step) {
    prefetch_box(map, 0, step * kStepRows, static_cast<int>(first_column / kBlock), 0, 0);
  }

  __device__ __forceinline__ Weight(const Params& params, int64_t first_column)
      : parts_per_group_(params.group_size / kPartK),
        n_(params.n),
        lane_column_(first_column + threadIdx.x % 32 / 4 * 4) {
    const int g = threadIdx.x % 32 / 4, row = row_of(0, threadIdx.x % 4);
    word_at_ = row * kSwizzleBytes + (g ^ row) * 16;
  }

  // Of eight numbers of a token, those that go with low ones of a word come first if folded.
  static constexpr bool kArranges = kFolds;
  static __device__ __forceinline__ uint4 arranged(const uint4& eight) {
    return make_uint4(eight.x, eight.z, eight.y, eight.w);
  }

  // Where this lane's runs of tokens begin in a step's.
  static __device__ __forceinline__ int token_offset(int pitch) {
    return threadIdx.x % 32 / 4 * pitch + row_of(0, threadIdx.x % 4) * 16;
  }

  // The steps to come are [begin, end).
  __device__ __forceinline__ void start(const Params& params, int begin, int end) {
    if (begin == end) return;
    const int group = begin * kParts / parts_per_group_;
    left_ = (group + 1) * parts_per_group_ - begin * kParts;
    const int64_t at = group * n_ + lane_column_;
    scales_at_ = static_cast<const __half*>(params.scales) + at;
    zeros_at_ = params.zeros + at / kRowNumbers;
    parts_left_ = min(end * kParts, static_cast<int>(params.k / kPartK)) - begin * kParts;
    load_group();
  }

  // tokens: this lane's.
  __device__ __forceinline__ void add(const char* words, const char* tokens, int eight_tokens) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      Group group;
      begin_part(group);
      float low_sums[2 * kHalves][kTokenTiles][4] = {}, high_sums[2 * kHalves][kTokenTiles][4] = {};
      float token_sums[kTokenTiles][4] = {};
#pragma unroll
      for (int u = part * kTiles / kParts; u < (part + 1) * kTiles / kParts; ++u) {
        // From the lane's first row of words to this one's, and what the swizzle makes of it: see row_of().
        const int row = u / 2 * 8 + u % 2 * (kParts > 1 ? 4 : 1);
        const char* const place = words + (word_at_ ^ (row % 8 * 16)) + row * kSwizzleBytes;
        uint4 right[kTokenTiles];
#pragma unroll
        for (int r = 0; r < kTokenTiles; ++r) {
          right[r] = *reinterpret_cast<const uint4*>(tokens + r * eight_tokens + row * 16);
          if constexpr (kFolds) {
            constexpr uint32_t kOnes = 0x3c003c00;
            mma_16x8x16<__half>(token_sums[r], {kOnes, kOnes, kOnes, kOnes}, right[r].x, right[r].y);
            mma_16x8x16<__half>(token_sums[r], {kOnes, kOnes, kOnes, kOnes}, right[r].z, right[r].w);
          }
        }
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          const uint4 four = *reinterpret_cast<const uint4*>(place + half * kHalfBytes);
#pragma unroll
          for (int pair = 0; pair < 2; ++pair) {
            const int column = 4 * half + 2 * pair, block = 2 * half + pair;
            uint32_t first[4], second[4];
            decode(group, pair == 0 ? four.x : four.z, column, first);
            decode(group, pair == 0 ? four.y : four.w, column + 1, second);
            // The order of K does not matter if both operands have the same.
            constexpr int kThird = kFolds ? 2 : 1, kSecond = 3 - kThird;
            const uint32_t low[4] = {first[0], second[0], first[kThird], second[kThird]};
            const uint32_t high[4] = {first[kSecond], second[kSecond], first[3], second[3]};
#pragma unroll
            for (int r = 0; r < kTokenTiles; ++r) {
              mma_16x8x16<__half>(low_sums[block][r], low, right[r].x, right[r].y);
              mma_16x8x16<__half>(kFolds ? high_sums[block][r] : low_sums[block][r], high, right[r].z, right[r].w);
            }
          }
        }
      }
      end_part(group, low_sums, high_sums, token_sums);
    }
  }

  // Calls f(column, token, sums of four columns) for each four that this lane has.
  template <class F>
  __device__ __forceinline__ void for_each_four(F&& f) const {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    constexpr float kUnit = kFolds ? kOneOverSubnormal : 1.0f;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int r = 0; r < kTokenTiles; ++r) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float (&first)[4] = sums_[2 * half][r], (&second)[4] = sums_[2 * half + 1][r];
          f(kBlock * half + 4 * g, 8 * r + 2 * t + e,
            make_float4(first[e] * kUnit, first[2 + e] * kUnit, second[e] * kUnit, second[2 + e] * kUnit));
        }
      }
    }
  }

  static __device__ __forceinline__ void store(const Params& params, int64_t row, int64_t column, const float4& sum) {
    __half2* const to = reinterpret_cast<__half2*>(static_cast<__half*>(params.result) + row * params.n + column);
    to[0] = __floats2half2_rn(sum.x, sum.y);
    to[1] = __floats2half2_rn(sum.z, sum.w);
  }

 private:
  static constexpr int kParts = kNarrow ? kTiles : 1, kPartK = kStepK / kParts;  // of a step, each in one group

  // What a lane has of a group: scales of its columns, and zero points plus one, or what biased numbers less them take.
  struct Group {
    float scales[4 * kHalves];
    float zeros[4 * kHalves];
    uint32_t low[4 * kHalves], high[4 * kHalves];
  };

  // The row of words that a lane has of half u of a step: banks differ in the first form.
  static __device__ __forceinline__ int row_of(int u, int t) { return kNarrow ? t + 4 * u : 2 * t + u; }

  // Asks for the scales and zero points of the part to come.
  __device__ __forceinline__ void load_group() {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      if (kHalves > 1 && lane_column_ + kBlock * half >= n_) continue;
      scales_[half] = __ldg(reinterpret_cast<const uint2*>(scales_at_ + kBlock * half));
      zeros_[half] = __ldg(zeros_at_ + kBlock * half / kRowNumbers);
    }
    if (--left_ == 0) {
      left_ = parts_per_group_;
      scales_at_ += n_;
      zeros_at_ += n_ / kRowNumbers;
    }
  }

  __device__ __forceinline__ void begin_part(Group& group) {
    const int shift = threadIdx.x % 32 / 4 % 2 * 16;  // of the lane's four zero points in their word
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const uint32_t zeros = zeros_[half] >> shift;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 4 * half + i;
        const uint32_t pair = i < 2 ? scales_[half].x : scales_[half].y;
        const float2 scale = __half22float2(half2_of(pair));
        group.scales[column] = i % 2 == 0 ? scale.x : scale.y;
        const uint32_t zero = zeros >> kBits * i & 0xf;
        if constexpr (kFolds) {
          // As a float, 2^23 plus a number is a matter of bits.
          group.zeros[column] = __uint_as_float(zero | 0x4b000000) - (0x1p23f - 1.0f);
        } else {
          group.low[column] = zero * 0x00010001u + 0x64016401u;   // 1024 + zero + 1
          group.high[column] = zero * 0x00100010u + 0xd410d410u;  // -(64 + zero + 1)
        }
      }
    }
    if (--parts_left_ > 0) load_group();
  }

  __device__ __forceinline__ void end_part(const Group& group, const float (&low)[2 * kHalves][kTokenTiles][4],
                                           const float (&high)[2 * kHalves][kTokenTiles][4],
                                           const float (&tokens)[kTokenTiles][4]) {
#pragma unroll
    for (int r = 0; r < kTokenTiles; ++r) {
      const float less[2] = {tokens[r][0] * (-1.0f / kOneOverSubnormal), tokens[r][1] * (-1.0f / kOneOverSubnormal)};
#pragma unroll
      for (int b = 0; b < 2 * kHalves; ++b) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float sum = low[b][r][e];
          if constexpr (kFolds) {
            sum += high[b][r][e] * 0.0625f;
            sum += group.zeros[2 * b + e / 2] * less[e % 2];
          }
          sums_[b][r][e] += sum * group.scales[2 * b + e / 2];
        }
      }
    }
  }

  static __device__ __forceinline__ uint32_t biased(uint32_t word, uint32_t mask) {
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "r"(mask), "r"(0x64006400u));
    return result;
  }
  static __device__ __forceinline__ __half2 half2_of(uint32_t bits) { return *reinterpret_cast<const __half2*>(&bits); }
  static __device__ __forceinline__ uint32_t bits_of(__half2 value) {
    return *reinterpret_cast<const uint32_t*>(&value);
  }

  // The eight numbers of a word. Folded, as they are, in subnormal numbers, pairs 1 and 3 times 16; else less their
  // zero point.
  static __device__ __forceinline__ void decode(const Group& group, uint32_t word, int column, uint32_t (&pairs)[4]) {
    constexpr uint32_t kLow = 0x000f000f, kHigh = 0x00f000f0;
    const uint32_t upper = word >> 8;
    if constexpr (kFolds) {
      pairs[0] = word & kLow;
      pairs[1] = word & kHigh;
      pairs[2] = upper & kLow;
      pairs[3] = upper & kHigh;
    } else {
      const __half2 sixteenth = half2_of(0x2c002c00);
      const __half2 low = half2_of(group.low[column]), high = half2_of(group.high[column]);
      pairs[0] = bits_of(__hsub2(half2_of(biased(word, kLow)), low));
      pairs[1] = bits_of(__hfma2(half2_of(biased(word, kHigh)), sixteenth, high));
      pairs[2] = bits_of(__hsub2(half2_of(biased(upper, kLow)), low));
      pairs[3] = bits_of(__hfma2(half2_of(biased(upper, kHigh)), sixteenth, high));
    }
  }

  static constexpr float kOneOverSubnormal = 0x1p24f;

  int word_at_;  // where this lane's first words lie in a step
  const int parts_per_group_;
  const int64_t n_, lane_column_;
  const __half* scales_at_ = nullptr;
  const uint32_t* zeros_at_ = nullptr;
  int left_ = 0, parts_left_ = 0;  // parts to be loaded of the group; parts to come
  uint2 scales_[kHalves] = {};     // of the part to come
  uint32_t zeros_[kHalves] = {};
  float sums_[2 * kHalves][kTokenTiles][4] = {};  // folded: in units of 1 / kOneOverSubnormal
};

}  // namespace sgl_kernel::SGL_TARGET::gptq_stream
