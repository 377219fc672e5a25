// A stage of gptq_marlin_gemm of few tokens on Hopper (marlin_gemm_few_tokens_sm90a.cuh): how a block's ring lies in
// shared memory, how stages come, and what a warp multiplies of each.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/device/wgmma_registers_sm90.cuh"
#include "kernels/device/wgmma_sm90.cuh"
#include "kernels/gemm/few_tokens_mm_sm90a.cuh"
#include "kernels/gemm/marlin_gemm_decode.cuh"
#include "kernels/gemm/marlin_layout.h"

namespace sgl_kernel::SGL_TARGET::marlin_few_tokens {

using namespace marlin;

inline constexpr int kBoxK = kSwizzleBytes / 2;                               // numbers of a token in a box
inline constexpr int kElementBytes = 8, kMostBoxBytes = 256 * kElementBytes;  // of the weight, as its map sees it

// What results lack: the numbers that are multiplied are so much less than the weight's.
template <class T, Format kFormat>
inline constexpr float kResultFactor = kFormat == Format::kInt4                  ? 4.0f
                                       : kFormat == Format::kInt8 && !kIsHalf<T> ? 64.0f
                                       : kFormat == Format::kE2M1                ? kFp4Factor<T>
                                                                                 : 1.0f;

// What Merge asks of a weight.
template <class T, Format kFormat>
struct Output {
  using Params = MarlinGemmParams;
  using Sum = float;
  static constexpr int kColumnBlocks = kMarlinTileN / 16;

  static __device__ __forceinline__ int column_of(int column_warp, int block, int lower, int g) {
    return 16 * (column_warp * kColumnBlocks + block) + 8 * lower + g;
  }

  static __device__ __forceinline__ void store(const Params& params, int64_t row, int64_t column,
                                               const float (&sum)[4]) {
    using mixed_mm::Pair;
    Pair<T>* const to = reinterpret_cast<Pair<T>*>(static_cast<T*>(params.result) + row * params.n + column);
    const float factor = mixed_mm::result_factor(static_cast<const T*>(params.global_scale), kResultFactor<T, kFormat>);
    float scales[4] = {factor, factor, factor, factor};
    if (params.num_groups == 1) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int within = static_cast<int>(column % kMarlinTileN);
        const int place = marlin_scale_place(within + e, params.many_groups);
        const T* const scales_of_tile = static_cast<const T*>(params.scales) + (column - within);
        scales[e] = static_cast<float>(scales_of_tile[place]) * (factor * kScaleFactor<T, kFormat>);
      }
    }
    to[0] = mixed_mm::to_pair<T>(sum[0] * scales[0], sum[1] * scales[1]);
    to[1] = mixed_mm::to_pair<T>(sum[2] * scales[2], sum[3] * scales[3]);
  }
};

// kZeros: whether there are zero points other than the type's. kTiles: along K, of a warp's step; groups do not end in
// it, but for float4_e2m1f's, which are a tile each, two of them in a row of scales.
template <class T_, Format kFormat_, bool kZeros_, int kTiles_, int kTokenTiles_, int kColumnWarps_, int kWarps_>
struct Config {
  using T = T_;
  using Weight = Output<T, kFormat_>;
  static constexpr Format kFormat = kFormat_;
  static constexpr bool kZeros = kZeros_;
  static constexpr int kBits = bits_of(kFormat), kTileBytes = kMarlinTileK * kMarlinTileN * kBits / 8;
  static constexpr int kTiles = kTiles_, kTokenTiles = kTokenTiles_, kTokens = 8 * kTokenTiles;
  // Whether a block leaves room for one of the next kernel on its multiprocessor, which starts before this one ends,
  // and has a further warp that asks for stages: 4 to 14% less time. With more tokens there are too few registers.
  static constexpr bool kEarly = kFormat == Format::kInt4 && kTokenTiles == 1 && kColumnWarps_ == 1 && kWarps_ == 8;
  static constexpr int kWarps = kWarps_, kThreads = 32 * (kWarps + (kEarly ? 1 : 0));
  static constexpr int kColumnWarps = kColumnWarps_, kDepthWarps = kWarps / kColumnWarps;
  static constexpr int kColumns = kColumnWarps * kMarlinTileN;
  // Whether the four warps side by side multiply as a warpgroup: a wgmma takes less than the mma.sync of four token
  // tiles, 10% of all; it takes as much as those of two.
  static constexpr bool kWarpgroups = kFormat == Format::kInt4 && kColumnWarps == 4 && kTokenTiles == 4;
  static constexpr int kStageTiles = kDepthWarps * kTiles, kStageK = kStageTiles * kMarlinTileK;
  static constexpr int kTokenBoxes = kStageK / kBoxK, kTokenBoxBytes = kTokens * kSwizzleBytes;
  static constexpr int kBoxColumns = std::min(kColumnWarps, kMostBoxBytes / kTileBytes);  // tiles
  static constexpr int kWeightBoxes = kColumnWarps / kBoxColumns;
  static constexpr int kWeightBytes = kStageTiles * kColumnWarps * kTileBytes;
  static constexpr int kScaleBytes = kColumns * 2, kZeroBytes = kZeros ? kColumns * kBits / 8 : 0;  // of a group
  static constexpr int kStepScales = kFormat == Format::kE2M1 ? kTiles / 2 : 1, kScaleRows = kDepthWarps * kStepScales;
  static constexpr int kStageBytes =
      kTokenBoxes * kTokenBoxBytes + kWeightBytes + kScaleRows * kScaleBytes + kDepthWarps * kZeroBytes;
  static constexpr int kSumPitch = kColumns + 4;  // a lane's columns and tokens then lie in different banks
  static constexpr int kReceivedBytes =
      (kTokens * kColumns + few_tokens::kMostSplits * 4) * 4;  // shares are rounded up
  // Blocks of a multiprocessor, and the stages that they find room for. A block of eight warps has it alone: with room
  // for two, those of the next kernel may crowd some multiprocessors, unless they come while each multiprocessor still
  // has one block. Few tokens of 8 bits gain more than they lose.
  static constexpr bool kPaired = kBits == 8 && kTokenTiles == 1 && kColumnWarps == 1;
  static constexpr int kBlocks = kWarps == 4 ? 3 : kPaired || kEarly ? 2 : 1;
  static constexpr int kMostBytes = 228 * 1024 / kBlocks - 1024, kBarrierBytes = 1024;
  static constexpr int kStages = std::min(6, (kMostBytes - kReceivedBytes - kBarrierBytes) / kStageBytes);
  // Stages asked for at first, and then ahead of the one that has come. Decoding 4 bits takes as long as their loads:
  // it is to begin early, so no more of the weight is on its way to a multiprocessor than must be.
  static constexpr bool kPaced = kBits == 4 && kTokenTiles <= 2 && !kEarly;
  static constexpr int kAhead = std::min(kStages - 2, kPaced ? 48 * 1024 / (kBlocks * kWeightBytes) : kStages);
  static constexpr int kFirst = kPaced ? kAhead : kStages;
  static_assert(kStageK % kBoxK == 0);
  static_assert(kStages > 2);
};

template <class C>
struct SharedMemory {
  union {
    struct {
      alignas(8 * kSwizzleBytes) uint8_t tokens[C::kStages][C::kTokenBoxes][C::kTokenBoxBytes];
      alignas(128) uint8_t weights[C::kStages][C::kWeightBoxes][C::kStageTiles][C::kBoxColumns * C::kTileBytes];
      alignas(128) uint8_t scales[C::kStages][C::kScaleRows][C::kScaleBytes];
      alignas(128) uint8_t zeros[C::kStages][C::kDepthWarps][C::kZeroBytes + (C::kZeros ? 0 : 16)];
    };
    float sums[C::kDepthWarps][C::kTokens][C::kSumPitch];
  };
  alignas(16) char received[C::kReceivedBytes];
  Barrier full[C::kStages], empty[C::kStages], all_received;
  __device__ SharedMemory() {}
};

struct Maps {
  CUtensorMap tokens, weights, scales, zeros;
};

// The stages of a block: of K, the first `longer` splits have one more than `least`.
struct Call {
  int splits, least, longer;
  int stage_bytes;                 // that the copy engine brings
  int group_rows, stages_per_row;  // rows of scales in a stage, or stages that share one
  bool has_scales;                 // of several groups; those of one join the result
};

// Calls visit(destination, map, row, column) for each box of stage `stage` of K, in place `index` of the ring.
template <class C, class Visit>
__device__ __forceinline__ void for_each_box(const Call& call, const Maps& maps, SharedMemory<C>& shared,
                                             int first_column, int index, int stage, const Visit& visit) {
#pragma unroll
  for (int box = 0; box < C::kWeightBoxes; ++box) {
    const int tile = first_column / kMarlinTileN + box * C::kBoxColumns;
    visit(shared.weights[index][box], &maps.weights, stage * C::kStageTiles, tile * (C::kTileBytes / kElementBytes));
  }
#pragma unroll
  for (int box = 0; box < C::kTokenBoxes; ++box) {
    visit(shared.tokens[index][box], &maps.tokens, 0, stage * C::kStageK + box * kBoxK);
  }
  const int row = call.stages_per_row == 1 ? stage * call.group_rows : stage / call.stages_per_row;
  if (call.has_scales) visit(shared.scales[index], &maps.scales, row, first_column);
  if constexpr (C::kZeros) visit(shared.zeros[index], &maps.zeros, row, first_column * C::kBits / 8);
}

// One thread: asks for a stage.
template <class C>
__device__ __forceinline__ void ask(const Call& call, const Maps& maps, SharedMemory<C>& shared, int first_column,
                                    int index, int stage) {
  Barrier* const full = &shared.full[index];
  full->arrive_and_expect(call.stage_bytes);
  for_each_box<C>(call, maps, shared, first_column, index, stage,
                  [full](void* destination, const CUtensorMap* map, int row, int column) {
                    load_matrix_box(destination, map, full, row, column);
                  });
}

// A lane's share of a step.
template <class C>
struct Step {
  // One, as a checkpoint's scale has it.
  static constexpr uint32_t kOnes = C::kFormat == Format::kE4M3 ? kRebias<typename C::T, C::kFormat>
                                    : kIsHalf<typename C::T>    ? 0x3c003c00
                                                                : 0x3f803f80;

  uint4 words[C::kTiles][C::kBits / 4];
  uint4 scales[C::kStepScales] = {{kOnes, kOnes, kOnes, kOnes}};  // of the columns g + 8i
  uint2 zeros;                                                    // "
};

__device__ __forceinline__ void load_shared_matrices(uint32_t (&matrices)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row));
}

template <class T>
__device__ __forceinline__ uint32_t multiply_add_pairs(uint32_t a, uint32_t b, uint32_t c) {
  using mixed_mm::Pair;
  return bit_cast<uint32_t>(__hfma2(bit_cast<Pair<T>>(a), bit_cast<Pair<T>>(b), bit_cast<Pair<T>>(c)));
}

// Stops the compiler from computing a number anew wherever it is used.
__device__ __forceinline__ void keep(uint32_t& number) { asm volatile("" : "+r"(number)); }

// A warp's products of a stage: of its columns, over its part of K.
template <class C>
class Consumer {
 public:
  using T = typename C::T;

  __device__ __forceinline__ Consumer(const Call& call, SharedMemory<C>& shared, int column_warp, int depth_warp)
      : has_scales_(call.has_scales) {
    const int lane = threadIdx.x % 32;
    const int tile = depth_warp * C::kTiles, row = call.group_rows * depth_warp / C::kDepthWarps;
    words_ = shared_address(&shared.weights[0][column_warp / C::kBoxColumns][tile]
                                           [column_warp % C::kBoxColumns * C::kTileBytes + lane * (C::kBits * 4)]);
    scales_ = shared_address(&shared.scales[0][row][(column_warp * kMarlinTileN + g() * 8) * sizeof(T)]);
    zeros_ = shared_address(&shared.zeros[0][row][column_warp * (kMarlinTileN * C::kBits / 8) + g() * C::kBits]);
    tokens_ = shared_address(&shared.tokens[0][tile * kMarlinTileK / kBoxK][lane % 8 * kSwizzleBytes]);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int chunk = (tile * kMarlinTileK + pair * kPairK) % kBoxK / 8 + lane / 8;  // of 8 numbers
      pair_[pair] = (tile * kMarlinTileK % kBoxK + pair * kPairK) / kBoxK * C::kTokenBoxBytes + (chunk ^ lane % 8) * 16;
      keep(pair_[pair]);
    }
    step_tokens_ = tokens_ - lane % 8 * kSwizzleBytes + tile * kMarlinTileK % kBoxK * sizeof(T);
    for (uint32_t* address : {&words_, &scales_, &zeros_, &tokens_}) keep(*address);
  }

  // The stage in place `index` of the ring. `step` is the same in each call.
  __device__ __forceinline__ void multiply(int index, Step<C>& step, float (&sums)[4][C::kTokenTiles][4]) const {
    take(index, step);
    add(index, step, sums);
  }

 private:
  // Whether each number is scaled, which is exact, not the sums.
  static constexpr bool kScaled = C::kFormat == Format::kE2M1;
  static __device__ __forceinline__ int g() { return threadIdx.x % 32 / 4; }

  static constexpr int kPairK = 2 * kMarlinTileK, kPairs = C::kTiles / 2;  // of tiles
  static constexpr uint32_t kConstantZero = 1u << (C::kBits - 1);          // the type's own zero point

  __device__ __forceinline__ void take(int index, Step<C>& step) const {
    const uint32_t words = words_ + index * C::kWeightBytes;
#pragma unroll
    for (int u = 0; u < C::kTiles; ++u) {
#pragma unroll
      for (int i = 0; i < C::kBits / 4; ++i) {
        step.words[u][i] = load_shared(words + u * (C::kBoxColumns * C::kTileBytes) + i * 16);
      }
    }
    if (has_scales_) {
#pragma unroll
      for (int i = 0; i < C::kStepScales; ++i) {
        step.scales[i] = load_shared(scales_ + index * (C::kScaleRows * C::kScaleBytes) + i * C::kScaleBytes);
      }
    }
    if constexpr (C::kZeros) {
      const uint32_t zeros = zeros_ + index * (C::kDepthWarps * C::kZeroBytes);
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(step.zeros.x) : "r"(zeros));
      if constexpr (C::kBits == 8) asm volatile("ld.shared.b32 %0, [%1];" : "=r"(step.zeros.y) : "r"(zeros + 4));
    }
  }

  // add() by a warpgroup, whose warps are at the same step.
  __device__ __forceinline__ void add_together(int index, const Step<C>& step,
                                               float (&sums)[4][C::kTokenTiles][4]) const {
    constexpr int kStepBytes = kMarlinTileK * sizeof(T);
    const uint64_t tokens = make_descriptor(step_tokens_ + index * (C::kTokenBoxes * C::kTokenBoxBytes), 0);
    float of_step[4][C::kTokens / 2];
    uint32_t left[2][4][4];  // of two tiles: one is multiplied while the other is decoded
#pragma unroll
    for (int u = 0; u < C::kTiles; ++u) {
      if (u >= 2) wait_wgmma<1>();
#pragma unroll
      for (int block = 0; block < 4; ++block) {
        if (u >= 2) pin_registers(left[u % 2][block]);
        decode_block(step, u, block, left[u % 2][block]);
        pin_registers(left[u % 2][block]);
      }
      open_wgmma();
#pragma unroll
      for (int block = 0; block < 4; ++block) {
        wgmma_registers_transposed<T, C::kTokens>(of_step[block], left[u % 2][block],
                                                  tokens + descriptor_offset(u * kStepBytes), u > 0);
      }
      commit_wgmma();
    }
    wait_wgmma<0>();
#pragma unroll
    for (int block = 0; block < 4; ++block) {
      pin_registers(of_step[block]);
      const float scales[2] = {scale_of(step, 2 * block), scale_of(step, 2 * block + 1)};
#pragma unroll
      for (int i = 0; i < C::kTokens / 2; ++i) sums[block][i / 4][i % 4] += of_step[block][i] * scales[i / 2 % 2];
    }
  }

  __device__ __forceinline__ void add(int index, const Step<C>& step, float (&sums)[4][C::kTokenTiles][4]) const {
    if constexpr (C::kWarpgroups) {
      add_together(index, step, sums);
      return;
    }
    uint32_t right[C::kTokenTiles][kPairs][4];  // b0 and b1 of a tile, then of the next
    const uint32_t tokens = tokens_ + index * (C::kTokenBoxes * C::kTokenBoxBytes);
#pragma unroll
    for (int r = 0; r < C::kTokenTiles; ++r) {
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        load_shared_matrices(right[r][pair], tokens + pair_[pair] + r * (8 * kSwizzleBytes));
      }
    }
    // Four sums at a time, so that the tensor core need not wait for any.
    constexpr int kBlocksAtOnce = C::kTokenTiles >= 4 ? 1 : 4 / C::kTokenTiles;
#pragma unroll
    for (int first = 0; first < 4; first += kBlocksAtOnce) {
      float of_step[kBlocksAtOnce][C::kTokenTiles][4] = {};
#pragma unroll
      for (int u = 0; u < C::kTiles; ++u) {
#pragma unroll
        for (int i = 0; i < kBlocksAtOnce; ++i) {
          uint32_t left[4];  // rows g and g + 8, then 8 further along K
          decode_block(step, u, first + i, left);
#pragma unroll
          for (int r = 0; r < C::kTokenTiles; ++r) {
            float (&sum)[4] = kScaled ? sums[first + i][r] : of_step[i][r];
            mma_16x8x16<T>(sum, left, right[r][u / 2][u % 2 * 2], right[r][u / 2][u % 2 * 2 + 1]);
          }
        }
      }
      if constexpr (!kScaled) {
#pragma unroll
        for (int i = 0; i < kBlocksAtOnce; ++i) {
          const float upper = scale_of(step, 2 * (first + i)), lower = scale_of(step, 2 * (first + i) + 1);
#pragma unroll
          for (int r = 0; r < C::kTokenTiles; ++r) {
            float (&sum)[4] = sums[first + i][r];
            sum[0] += of_step[i][r][0] * upper;
            sum[1] += of_step[i][r][1] * upper;
            sum[2] += of_step[i][r][2] * lower;
            sum[3] += of_step[i][r][3] * lower;
          }
        }
      }
    }
  }

  // The low four bits of a byte follow 2^7 (f16: 2^10), 4 times too much; the high four are those of a subnormal, 2^129
  // times too small as bf16 (f16: they too follow 2^10, 64 times too much).
  static constexpr uint32_t kHighPlace = kIsHalf<T> ? kUnitPlace<T> : 0;
  static constexpr uint32_t kLowFactor = kIsHalf<T> ? 0x34003400 : 0x3e803e80;
  static constexpr uint32_t kHighFactor = kIsHalf<T> ? 0x24002400 : 0x7f007f00;

  // What is then added to the columns g + 8i.
  struct QuarterBias {
    uint32_t low, high;
  };
  __device__ __forceinline__ QuarterBias quarter_bias_of(const Step<C>& step, int i) const {
    if constexpr (!C::kZeros) {  // -(2^7 + 8) / 4 and -8 / 4 (f16: -(2^10 + 8) / 4, -(2^10 + 16 * 8) / 64)
      return kIsHalf<T> ? QuarterBias{0xdc08dc08, 0xcc80cc80} : QuarterBias{0xc208c208, 0xc000c000};
    }
    constexpr uint32_t kMinusQuarter = kIsHalf<T> ? 0xb400b400 : 0xbe80be80;
    constexpr uint32_t kLess = kIsHalf<T> ? 0xdb80db80 : 0xc200c200;  // -2^7 / 4 (f16: 2^10 / 64 - 2^10 / 4)
    const uint32_t low = multiply_pairs<T>(bias_of(step, i), kMinusQuarter);
    return {low, subtract_pairs<T>(low, kLess)};
  }

  // What is subtracted from the columns g + 8i.
  __device__ __forceinline__ uint32_t bias_of(const Step<C>& step, int i) const {
    if constexpr (!C::kZeros) return zero_bias<T, C::kFormat>(kConstantZero);
    constexpr int kPerWord = 32 / C::kBits;
    const uint32_t word = i / kPerWord == 0 ? step.zeros.x : step.zeros.y;
    return zero_bias<T, C::kFormat>(word >> marlin_zero_bit(C::kBits, i % kPerWord) & ((1u << C::kBits) - 1));
  }

  // Operand A of tile `u` and 16 columns.
  __device__ __forceinline__ void decode_block(const Step<C>& step, int u, int block, uint32_t (&left)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 2 * block + half;
      if constexpr (C::kFormat == Format::kInt8 && !kIsHalf<T>) {
        // A byte alone is a subnormal's, or of the next exponent: 2^-133 times itself.
        constexpr uint32_t kTwoTo127 = 0x7f007f00;
        const uint32_t word = word_of(step.words[u][i / 4], i % 4), bias = bias8_of(step, i);
        left[half] = multiply_add_pairs<T>(word & 0x00ff00ff, kTwoTo127, bias);
        left[2 + half] = multiply_add_pairs<T>(__byte_perm(word, 0, 0x4341), kTwoTo127, bias);
      } else if constexpr (C::kFormat == Format::kInt4) {
        const uint32_t numbers = word_of(step.words[u][0], block) >> 8 * half;
        const QuarterBias bias = quarter_bias_of(step, i);
        left[half] = multiply_add_pairs<T>(mask_and_set(numbers, 0x000f000f, kUnitPlace<T>), kLowFactor, bias.low);
        left[2 + half] = multiply_add_pairs<T>(mask_and_set(numbers, 0x00f000f0, kHighPlace), kHighFactor, bias.high);
      } else if constexpr (kScaled) {
        decode_raw<T, C::kFormat>(word_of(step.words[u][0], block), half, 0, left[half], left[2 + half]);
        const uint32_t scale = __byte_perm(number_scales(step, u, block), 0, half == 0 ? 0x1010 : 0x3232);
        left[half] = multiply_pairs<T>(left[half], scale);
        left[2 + half] = multiply_pairs<T>(left[2 + half], scale);
      } else {
        decode<T, C::kFormat>(word_of(step.words[u][i / 4], i % 4), half, bias_of(step, i), left[half], left[2 + half]);
      }
    }
  }

  // The float4's scales of tile `u`, of the columns 16 * block + g and 8 more.
  __device__ __forceinline__ uint32_t number_scales(const Step<C>& step, int u, int block) const {
    return fp4_scale_pair<T>(word_of(step.scales[u / 2], u % 2 * 2 + block / 2) >> 8 * (block % 2));
  }

  // The zero point of the columns g + 8i, times -2^-6: a pair.
  __device__ __forceinline__ uint32_t bias8_of(const Step<C>& step, int i) const {
    if constexpr (!C::kZeros) return 0xc000c000;
    const uint32_t word = i / 4 == 0 ? step.zeros.x : step.zeros.y;
    const float bias = static_cast<float>(word >> marlin_zero_bit(8, i % 4) & 0xff) * -0x1p-6f;
    return bit_cast<uint32_t>(mixed_mm::to_pair<T>(bias, bias));
  }

  __device__ __forceinline__ float scale_of(const Step<C>& step, int i) const {
    const uint32_t pair = word_of(step.scales[0], i / 2);
    if constexpr (kIsHalf<T>) {
      constexpr float kFactor = kScaleFactor<T, C::kFormat>;
      return static_cast<float>(bit_cast<T>(static_cast<uint16_t>(pair >> 16 * (i % 2)))) * kFactor;
    } else {
      return __uint_as_float(i % 2 == 0 ? pair << 16 : pair & 0xffff0000) * kScaleFactor<T, C::kFormat>;
    }
  }

  const bool has_scales_;
  // This lane's in the ring's first place.
  uint32_t words_, scales_, zeros_, tokens_;
  uint32_t step_tokens_;   // the warp's
  uint32_t pair_[kPairs];  // from tokens_ to each pair of tiles, swizzled
};

}  // namespace sgl_kernel::SGL_TARGET::marlin_few_tokens
