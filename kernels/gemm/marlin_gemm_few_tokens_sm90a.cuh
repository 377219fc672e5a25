// gptq_marlin_gemm of few tokens on Hopper: the weight goes from memory to shared memory by the copy engine, as fast as
// memory gives it, and from there to the registers where it is decoded.
//
// Operands are swapped: 16 columns of the weight fill the rows of the tensor core's instruction and 8 tokens its
// columns, so that one token wastes no more than it must. The operand B that Marlin's tiles hold for two n8 tiles of an
// instruction is the operand A of 16 columns, as it is.
//
// Grid: a cluster a tile of kColumns columns by all tokens; its blocks are the splits of K. A block has a ring of
// stages along K; of a stage each warp has the step of its columns and of its part of K, and nothing but the ring's
// barriers holds the warps together. Their sums meet as in few_tokens_mm_sm90a.cuh.
//
// Bound by memory where the weight is large and the tokens are few, by decoding and multiplying where they are more,
// and by start and end, 3 µs, where the weight is small. By tools/bench on an H200, 2026-11-23, groups of 128, in µs:
//   N x K                  9216 x 4096   4096 x 8192   4096 x 1536   2112 x 7168   24576 x 1536   7168 x 16384
//   uint4b8     1 token    8.4           7.9           3.3           5.3           7.4           18.2
//              16 tokens   9.7           7.9           3.6           5.8           8.0           19.7
//              32 tokens   12.9          10.1          4.8           7.4           13.1          29.1
//   uint8b128   1 token    13.0          11.0          4.0           7.1           11.5          30.9
//              16 tokens   13.2          11.6          4.4           7.2           12.1          32.0
//              32 tokens   15.4          13.1          5.4           8.5           15.8          36.5
#pragma once

#include <algorithm>
#include <climits>
#include <type_traits>

#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/vec.cuh"
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
  static constexpr int kWarps = kWarps_, kThreads = 32 * kWarps;
  static constexpr int kColumnWarps = kColumnWarps_, kDepthWarps = kWarps / kColumnWarps;
  static constexpr int kColumns = kColumnWarps * kMarlinTileN;
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
  // for two, those of the next kernel may crowd some multiprocessors. Few tokens of 8 bits gain more than they lose.
  static constexpr bool kPaired = kBits == 8 && kTokenTiles == 1 && kColumnWarps == 1;
  static constexpr int kBlocks = kWarps == 4 ? 3 : kPaired ? 2 : 1;
  static constexpr int kMostBytes = 228 * 1024 / kBlocks - 1024, kBarrierBytes = 1024;
  static constexpr int kStages = std::min(6, (kMostBytes - kReceivedBytes - kBarrierBytes) / kStageBytes);
  // Stages asked for at first, and then ahead of the one that has come. Decoding 4 bits takes as long as their loads:
  // it is to begin early, so no more of the weight is on its way to a multiprocessor than must be.
  static constexpr bool kPaced = kBits == 4 && kTokenTiles <= 2;
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

// One thread: asks for stage `stage` of K in place `index` of the ring.
template <class C>
__device__ __forceinline__ void ask(const Call& call, const Maps& maps, SharedMemory<C>& shared, int first_column,
                                    int index, int stage) {
  Barrier* const full = &shared.full[index];
  full->arrive_and_expect(call.stage_bytes);
#pragma unroll
  for (int box = 0; box < C::kWeightBoxes; ++box) {
    const int tile = first_column / kMarlinTileN + box * C::kBoxColumns;
    load_matrix_box(shared.weights[index][box], &maps.weights, full, stage * C::kStageTiles,
                    tile * (C::kTileBytes / kElementBytes));
  }
#pragma unroll
  for (int box = 0; box < C::kTokenBoxes; ++box) {
    load_matrix_box(shared.tokens[index][box], &maps.tokens, full, 0, stage * C::kStageK + box * kBoxK);
  }
  const int row = call.stages_per_row == 1 ? stage * call.group_rows : stage / call.stages_per_row;
  if (call.has_scales) load_matrix_box(shared.scales[index], &maps.scales, full, row, first_column);
  if constexpr (C::kZeros) load_matrix_box(shared.zeros[index], &maps.zeros, full, row, first_column * C::kBits / 8);
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

  __device__ __forceinline__ void add(int index, const Step<C>& step, float (&sums)[4][C::kTokenTiles][4]) const {
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
  uint32_t pair_[kPairs];  // from tokens_ to each pair of tiles, swizzled
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks)
    few_tokens_kernel(const __grid_constant__ MarlinGemmParams params, const __grid_constant__ Call call,
                      const __grid_constant__ Maps maps) {
  extern __shared__ __align__(8 * kSwizzleBytes) uint8_t dynamic_shared[];
  SharedMemory<C>& shared = *reinterpret_cast<SharedMemory<C>*>(dynamic_shared);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int column_warp = warp % C::kColumnWarps, depth_warp = warp / C::kColumnWarps;
  const int rank = blockIdx.x, first_column = blockIdx.y * C::kColumns;
  const int begin = rank * call.least + min(rank, call.longer);
  const int count = call.least + (rank < call.longer ? 1 : 0);
  const few_tokens::Merge<C> merge(call.splits, rank, static_cast<int>(params.m));
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&maps.weights);
    prefetch_tensor_map(&maps.tokens);
    if (call.has_scales) prefetch_tensor_map(&maps.scales);
    for (int stage = 0; stage < C::kStages; ++stage) {
      shared.full[stage].init(1);
      shared.empty[stage].init(C::kWarps);
    }
    fence_barrier_init();
  }
  merge.start(shared.all_received);
  __syncthreads();
  merge.arrive();
  const Consumer<C> consumer(call, shared, column_warp, depth_warp);
  wait_for_predecessor();
  if (warp == 0 && elect_one()) {
    for (int i = 0; i < min(C::kFirst, count); ++i) ask<C>(call, maps, shared, first_column, i, begin + i);
  }
  __syncwarp();
  float sums[C::Weight::kColumnBlocks][C::kTokenTiles][4] = {};
  Step<C> step;
  RingPosition<C::kStages> at;
  int turn = warp;  // of the warps to ask for a stage, in a place where hardly a warp still is
  for (int i = 0; i < count; ++i) {
    shared.full[at.index].wait(at.parity);
    if (i == turn) {
      const int next = i + C::kAhead, place = next % C::kStages;
      if (next >= C::kFirst && next < count && elect_one()) {
        if (next >= C::kStages) shared.empty[place].wait((next / C::kStages - 1) & 1);
        ask<C>(call, maps, shared, first_column, place, begin + next);
      }
      __syncwarp();
      turn += C::kWarps;
    }
    // Not before the last stage was asked for: their blocks would crowd some multiprocessors.
    if (i == count - 1 - C::kAhead) release_successors();
    consumer.multiply(at.index, step, sums);
    __syncwarp();
    if (elect_one()) shared.empty[at.index].arrive();
    at.advance();
  }
  release_successors();
  __syncthreads();  // no stage is in use
  char* const left = reinterpret_cast<char*>(&shared.sums);
  merge.leave(left, sums, column_warp, depth_warp);
  __syncthreads();
  merge.finish(params, left, shared.received, shared.all_received, first_column, 0);
}

// How long the product takes with `splits` of K, in units of about 1000 of K by 64 columns of a block of eight warps.
// The constants are fitted, of 4 and of 8 bits by themselves, to the times of products with all types but
// float4_e2m1f, bf16, 8 to 32 tokens on an H200 (2026-11-23; the N and K of Qwen3-VL-235B and DeepSeek-V3): of these
// the model's choice is 0.1% above the best.
template <class C>
double cost(const MarlinGemmParams& params, int splits) {
  constexpr bool k4 = C::kBits == 4;
  constexpr double kMerge = k4 ? 0.14 : 0.04, kMergeSplit = k4 ? 0.126 : 0.078, kColumn = k4 ? 0.172 : 0.135;
  constexpr double kFurtherWave = k4 ? 0.938 : 2.06, kFourWarps = k4 ? 0.181 : -0.069;
  // By the blocks of a multiprocessor.
  static constexpr double kOfFourWarps[] = {0.0, k4 ? 0.833 : 0.874, k4 ? 2.023 : 1.828, k4 ? 2.538 : 2.806};
  static constexpr double kOfEightWarps[] = {0.0, k4 ? 0.81 : 0.798, k4 ? 1.62 : 1.545};
  constexpr double kWide = !k4 ? 2.561 : C::kTokenTiles == 1 ? 2.93 : 3.152;
  const double* const of_blocks = C::kWarps == 4 ? kOfFourWarps : kOfEightWarps;
  // Not all multiprocessors belong to a cluster of more than two.
  const int64_t room = splits <= 2 ? 132 : 112;
  const int64_t blocks = ((params.n + C::kColumns - 1) / C::kColumns * splits + room - 1) / room;  // of the fullest
  const int64_t stages = (params.k + C::kStageK - 1) / C::kStageK, longest = (stages + splits - 1) / splits;
  const int64_t most = C::kBlocks, waves = (blocks + most - 1) / most;
  const double many = static_cast<double>(blocks) / static_cast<double>(most) * of_blocks[most];
  const double step = C::kColumnWarps > 1 ? kWide * static_cast<double>(blocks)
                      : blocks < most     ? of_blocks[blocks]
                                          : many;
  return step * static_cast<double>(longest * C::kStageK) / 1000.0 + kColumn * C::kColumnWarps +
         (splits > 1 ? kMerge + kMergeSplit * splits : 0.0) + kFurtherWave * static_cast<double>(waves - 1) +
         (C::kWarps == 4 ? kFourWarps : 0.0);
}

struct Plan {
  int splits;
  double cost;
};

template <class C>
Plan plan(const MarlinGemmParams& params) {
  const int64_t stages = (params.k + C::kStageK - 1) / C::kStageK;
  Plan best = {1, cost<C>(params, 1)};
  for (int splits = 2; splits <= std::min<int64_t>(few_tokens::kMostSplits, stages); ++splits) {
    const double its = cost<C>(params, splits);
    if (its < best.cost) best = {splits, its};
  }
  return best;
}

template <class C>
Status multiply(const MarlinGemmParams& params, int splits, Stream stream) {
  constexpr char kName[] = "gptq_marlin_gemm";
  static_assert(sizeof(SharedMemory<C>) <= C::kMostBytes);
  const bool gathered = params.gathered != nullptr, several = params.num_groups > 1;
  const int64_t column_tiles = (params.n + C::kColumns - 1) / C::kColumns;
  const int stages = static_cast<int>((params.k + C::kStageK - 1) / C::kStageK);
  constexpr int kRowGroups = C::kFormat == Format::kE2M1 ? 2 : 1;  // of a row of scales
  const int64_t row_size = params.group_size * kRowGroups;
  const int group_rows = several ? static_cast<int>(std::max<int64_t>(1, C::kStageK / row_size)) : 1;
  const int row_bytes = (several ? C::kScaleBytes : 0) + C::kZeroBytes;
  const Call call = {
      .splits = splits,
      .least = stages / splits,
      .longer = stages % splits,
      .stage_bytes =
          C::kWeightBytes + C::kTokenBoxes * static_cast<int>(params.m) * kSwizzleBytes + group_rows * row_bytes,
      .group_rows = group_rows,
      .stages_per_row = several ? static_cast<int>(std::max<int64_t>(1, row_size / C::kStageK)) : INT_MAX,
      .has_scales = several};
  const uint64_t n = static_cast<uint64_t>(params.n), num_groups = static_cast<uint64_t>(params.num_groups);
  const uint64_t weight_row = n / kMarlinTileN * C::kTileBytes, zero_row = n * C::kBits / 8;
  Maps maps = {};
  SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.tokens,
                                        {.data = const_cast<void*>(gathered ? params.gathered : params.a),
                                         .rows = static_cast<uint64_t>(params.m),
                                         .columns = static_cast<uint64_t>(params.k),
                                         .row_bytes = static_cast<uint64_t>(gathered ? params.k : params.a_stride) * 2,
                                         .box_rows = static_cast<uint32_t>(params.m),
                                         .box_columns = kBoxK,
                                         .element_bytes = 2}));
  SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.weights,
                                        {.data = const_cast<uint32_t*>(params.weight),
                                         .rows = static_cast<uint64_t>(params.k / kMarlinTileK),
                                         .columns = weight_row / kElementBytes,
                                         .row_bytes = weight_row,
                                         .box_rows = C::kStageTiles,
                                         .box_columns = C::kBoxColumns * C::kTileBytes / kElementBytes,
                                         .element_bytes = kElementBytes,
                                         .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  if (several) {
    SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.scales,
                                          {.data = const_cast<void*>(params.scales),
                                           .rows = num_groups / kRowGroups,
                                           .columns = n,
                                           .row_bytes = n * 2,
                                           .box_rows = static_cast<uint32_t>(group_rows),
                                           .box_columns = C::kColumns,
                                           .element_bytes = 2,
                                           .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  }
  if constexpr (C::kZeros) {
    SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.zeros,
                                          {.data = const_cast<void*>(params.zeros),
                                           .rows = num_groups,
                                           .columns = zero_row,
                                           .row_bytes = zero_row,
                                           .box_rows = static_cast<uint32_t>(group_rows),
                                           .box_columns = C::kZeroBytes,
                                           .element_bytes = 1,
                                           .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  }
  const auto kernel = few_tokens_kernel<C>;
  SGL_RETURN_IF_ERROR(allow_shared_memory(kName, kernel, sizeof(SharedMemory<C>)));
  return launch(kName, kernel,
                {.grid = dim3(splits, static_cast<unsigned>(column_tiles)),
                 .block = C::kThreads,
                 .shared_bytes = sizeof(SharedMemory<C>),
                 .pdl = true,
                 .cluster = splits},
                stream, params, call, maps);
}

template <class First, class... Others>
Status choose_blocks(const MarlinGemmParams& params, Stream stream) {
  Plan best = plan<First>(params);
  auto multiply_best = multiply<First>;
  const auto consider = [&]<class C>(std::type_identity<C>) {
    const Plan its = plan<C>(params);
    if (its.cost < best.cost) {
      best = its;
      multiply_best = multiply<C>;
    }
  };
  (consider(std::type_identity<Others>()), ...);
  return multiply_best(params, best.splits, stream);
}

template <class T, Format kFormat, bool kZeros, int kTiles>
Status choose_tokens(const MarlinGemmParams& params, Stream stream) {
  if (params.m <= 8) {
    return choose_blocks<Config<T, kFormat, kZeros, kTiles, 1, 1, 8>, Config<T, kFormat, kZeros, kTiles, 1, 1, 4>,
                         Config<T, kFormat, kZeros, kTiles, 1, 4, 8>>(params, stream);
  }
  if (params.m <= 16) {
    return choose_blocks<Config<T, kFormat, kZeros, kTiles, 2, 1, 8>, Config<T, kFormat, kZeros, kTiles, 2, 1, 4>,
                         Config<T, kFormat, kZeros, kTiles, 2, 4, 8>>(params, stream);
  }
  return choose_blocks<Config<T, kFormat, kZeros, kTiles, 4, 1, 8>, Config<T, kFormat, kZeros, kTiles, 4, 4, 8>>(
      params, stream);
}

template <class T, Format kFormat, int kTiles>
Status choose_zeros(const MarlinGemmParams& params, Stream stream) {
  return params.zeros != nullptr ? choose_tokens<T, kFormat, true, kTiles>(params, stream)
                                 : choose_tokens<T, kFormat, false, kTiles>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET::marlin_few_tokens
