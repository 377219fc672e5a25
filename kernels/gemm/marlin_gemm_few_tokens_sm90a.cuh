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
// Bound by memory where the weight is large and the tokens are few, by decoding (the shifts and masks of the integer
// pipeline) and multiplying where they are more, and by start and end where the weight is small. Measured on an H200,
// 2026-11-23, bf16, groups of 128, in µs:
//   N x K                  9216 x 4096   4096 x 8192   4096 x 1536   2112 x 7168   24576 x 1536   7168 x 16384
//   uint4b8     1 token    9.2           7.2           3.5           6.2           9.0            18.8
//              16 tokens   10.7          8.5           4.0           6.2           10.4           22.1
//              32 tokens   13.4          10.1          4.7           7.4           13.6           29.4
//   uint8b128   1 token    12.9          10.7          4.6           7.9           13.9           33.8
//              16 tokens   13.1          11.6          4.6           7.3           14.1           32.4
//              32 tokens   16.2          13.0          5.3           8.8           16.8           38.4
#pragma once

#include <algorithm>
#include <climits>

#include "kernels/device/mma_16bit.cuh"
#include "kernels/device/mma_int8.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/gemm/few_tokens_mm_sm90a.cuh"
#include "kernels/gemm/marlin_gemm_decode.cuh"
#include "kernels/gemm/marlin_layout.h"

namespace sgl_kernel::SGL_TARGET::marlin_few_tokens {

using namespace marlin;

// result = a * b + c.
template <class T>
__device__ __forceinline__ void mma_onto(float (&result)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                         const float (&c)[4]) {
  if constexpr (kIsHalf<T>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, "
        "%12, %13};"
        : "=f"(result[0]), "=f"(result[1]), "=f"(result[2]), "=f"(result[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, "
        "%12, %13};"
        : "=f"(result[0]), "=f"(result[1]), "=f"(result[2]), "=f"(result[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  }
}

inline constexpr int kBoxK = kSwizzleBytes / 2;                               // numbers of a token in a box
inline constexpr int kElementBytes = 8, kMostBoxBytes = 256 * kElementBytes;  // of the weight, as its map sees it

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
    const float factor = mixed_mm::result_factor(static_cast<const T*>(params.global_scale),
                                                 kFormat == Format::kE2M1 ? kFp4Factor<T> : 1.0f);
    float scales[4] = {factor, factor, factor, factor};
    if (params.num_groups == 1) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int within = static_cast<int>(column % kMarlinTileN);
        const int place = marlin_scale_place(within + e, params.many_groups);
        const T* const scales_of_tile = static_cast<const T*>(params.scales) + (column - within);
        scales[e] = static_cast<float>(scales_of_tile[place]) * kScaleFactor<T, kFormat>;
      }
    }
    to[0] = mixed_mm::to_pair<T>(sum[0] * scales[0], sum[1] * scales[1]);
    to[1] = mixed_mm::to_pair<T>(sum[2] * scales[2], sum[3] * scales[3]);
  }
};

// kZeros: whether there are zero points other than the type's. kTiles: along K, of a warp's step; groups do not end in
// it, but for float4_e2m1f's, which are a tile each, two of them in a row of scales.
template <class T_, Format kFormat_, bool kZeros_, int kTiles_, int kTokenTiles_, int kColumnWarps_>
struct Config {
  using T = T_;
  using Weight = Output<T, kFormat_>;
  static constexpr Format kFormat = kFormat_;
  static constexpr bool kZeros = kZeros_;
  static constexpr int kBits = bits_of(kFormat), kTileBytes = kMarlinTileK * kMarlinTileN * kBits / 8;
  static constexpr int kTiles = kTiles_, kTokenTiles = kTokenTiles_, kTokens = 8 * kTokenTiles;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
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
  // Blocks of a multiprocessor, and the stages that they find room for.
  static constexpr int kBlocks = kTokenTiles == 1 || (kTokenTiles == 2 && kColumnWarps > 1) ? 2 : 1;
  static constexpr int kMostBytes = kBlocks == 2 ? 113 * 1024 : 227 * 1024, kBarrierBytes = 1024;
  static constexpr int kStages = std::min(6, (kMostBytes - kReceivedBytes - kBarrierBytes) / kStageBytes);
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
  uint4 words[C::kTiles][C::kBits / 4];
  uint4 scales[C::kStepScales];  // of the columns g + 8i
  uint2 zeros;                   // "
};

// (~a & mask) | bits in one instruction.
__device__ __forceinline__ uint32_t clear_and_set(uint32_t a, uint32_t mask, uint32_t bits) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xae;" : "=r"(result) : "r"(a), "r"(mask), "r"(bits));
  return result;
}

__device__ __forceinline__ void load_shared_matrices(uint32_t (&matrices)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row));
}

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
    }
  }

  // The stage in place `index` of the ring.
  __device__ __forceinline__ void multiply(int index, float (&sums)[4][C::kTokenTiles][4]) const {
    Step<C> step;
    take(index, step);
    add(index, step, sums);
  }

 private:
  // Whether not each number is made less by the zero point, but the sums are: then a number q becomes 16 + q in bf16,
  // and q * 2^-24 in f16, by its bits alone. With more tokens the tensor core has no time for it.
  static constexpr bool kBiased = C::kFormat == Format::kInt4 && !C::kZeros && C::kTokenTiles <= 2;
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
    } else {
      constexpr uint32_t kOnes = C::kFormat == Format::kE4M3 ? kRebias<T, C::kFormat>
                                 : kIsHalf<T>                ? 0x3c003c00
                                                             : 0x3f803f80;
      step.scales[0] = make_uint4(kOnes, kOnes, kOnes, kOnes);
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
    // What all columns' sums begin with: the tokens' sums times what the numbers have too much.
    float base[C::kTokenTiles][4] = {};
    if constexpr (kBiased) {
      constexpr uint32_t kTooMuch = kIsHalf<T> ? 0x80088008 : 0xc1c0c1c0;  // pairs of -8 * 2^-24, of -(16 + 8)
      constexpr uint32_t kLeft[4] = {kTooMuch, kTooMuch, kTooMuch, kTooMuch};
#pragma unroll
      for (int u = 0; u < C::kTiles; ++u) {
#pragma unroll
        for (int r = 0; r < C::kTokenTiles; ++r) {
          mma_16x8x16<T>(base[r], kLeft, right[r][u / 2][u % 2 * 2], right[r][u / 2][u % 2 * 2 + 1]);
        }
      }
    }
    // Four sums at a time, so that the tensor core need not wait for any.
    constexpr int kBlocksAtOnce = C::kTokenTiles >= 4 ? 1 : 4 / C::kTokenTiles;
#pragma unroll
    for (int first = 0; first < 4; first += kBlocksAtOnce) {
      float of_step[kBlocksAtOnce][C::kTokenTiles][4];
#pragma unroll
      for (int u = 0; u < C::kTiles; ++u) {
#pragma unroll
        for (int i = 0; i < kBlocksAtOnce; ++i) {
          uint32_t left[4];  // rows g and g + 8, then 8 further along K
          decode_block(step, u, first + i, left);
#pragma unroll
          for (int r = 0; r < C::kTokenTiles; ++r) {
            float (&sum)[4] = kScaled ? sums[first + i][r] : of_step[i][r];
            mma_onto<T>(sum, left, right[r][u / 2][u % 2 * 2], right[r][u / 2][u % 2 * 2 + 1],
                        u == 0 && !kScaled ? base[r] : sum);
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
        // A byte is 128 b + l. Less 128 it is 128 + l, which as bf16 is a matter of bits, less 256, or 128 where b
        // is 1.
        uint32_t word = word_of(step.words[u][i / 4], i % 4);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const uint32_t number = mask_and_set(word, 0x007f007f, kUnitPlace<T>);
          const uint32_t less = clear_and_set(word, 0x00800080, kUnitPlace<T>);  // b is the exponent's last bit
          left[half + 2 * k] = subtract_pairs<T>(number, less);
          if constexpr (C::kZeros) left[half + 2 * k] = subtract_pairs<T>(left[half + 2 * k], bias8_of(step, i));
          word >>= 8;
        }
      } else if constexpr (kBiased) {
        const uint32_t word = word_of(step.words[u][0], block);
        if constexpr (kIsHalf<T>) {
          left[half] = word >> 8 * half & 0x000f000f;
          left[2 + half] = word >> (8 * half + 4) & 0x000f000f;
        } else {
          constexpr uint32_t kSixteens = 0x41804180, kMask = 0x00780078;  // the four bits worth 1 to 8 beside 16
          left[half] = mask_and_set(half == 0 ? word << 3 : word >> 5, kMask, kSixteens);
          left[2 + half] = mask_and_set(word >> (8 * half + 1), kMask, kSixteens);
        }
      } else if constexpr (kScaled) {
        decode_raw<T, C::kFormat>(word_of(step.words[u][0], block), half, 0, left[half], left[2 + half]);
        const uint32_t scale = __byte_perm(number_scales(step, u, block), 0, half == 0 ? 0x1010 : 0x3232);
        left[half] = multiply_pairs<T>(left[half], scale);
        left[2 + half] = multiply_pairs<T>(left[2 + half], scale);
      } else {
        const uint32_t word = word_of(step.words[u][C::kBits == 4 ? 0 : i / 4], C::kBits == 4 ? block : i % 4);
        decode<T, C::kFormat>(word, half, bias_of(step, i), left[half], left[2 + half]);
      }
    }
  }

  // The float4's scales of tile `u`, of the columns 16 * block + g and 8 more.
  __device__ __forceinline__ uint32_t number_scales(const Step<C>& step, int u, int block) const {
    return fp4_scale_pair<T>(word_of(step.scales[u / 2], u % 2 * 2 + block / 2) >> 8 * (block % 2));
  }

  // The zero point of the columns g + 8i, less 128: a pair.
  __device__ __forceinline__ uint32_t bias8_of(const Step<C>& step, int i) const {
    const uint32_t word = i / 4 == 0 ? step.zeros.x : step.zeros.y;
    const int zero = static_cast<int>(word >> marlin_zero_bit(8, i % 4) & 0xff) - 128;
    return bit_cast<uint32_t>(mixed_mm::to_pair<T>(static_cast<float>(zero), static_cast<float>(zero)));
  }

  __device__ __forceinline__ float scale_of(const Step<C>& step, int i) const {
    const uint32_t pair = word_of(step.scales[0], i / 2);
    if constexpr (kIsHalf<T>) {
      constexpr float kFactor = kBiased ? 0x1p24f : kScaleFactor<T, C::kFormat>;
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
    for (int i = 0; i < min(C::kStages, count); ++i) ask<C>(call, maps, shared, first_column, i, begin + i);
  }
  __syncwarp();
  float sums[C::Weight::kColumnBlocks][C::kTokenTiles][4] = {};
  RingPosition<C::kStages> at, free;
  for (int i = 0; i < count; ++i) {
    // The warps take turns to fill a place of the ring anew: that of two stages ago, where hardly a warp still is.
    constexpr int kBehind = 2;
    if (i >= kBehind) {
      const int next = i - kBehind + C::kStages;
      if (next >= count) {
        release_successors();  // not before: their blocks would crowd some multiprocessors
      } else if (warp == i % C::kWarps && elect_one()) {
        shared.empty[free.index].wait(free.parity);
        ask<C>(call, maps, shared, first_column, free.index, begin + next);
      }
      __syncwarp();
      free.advance();
    }
    shared.full[at.index].wait(at.parity);
    consumer.multiply(at.index, sums);
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

// How long the product takes with `splits` of K, in units of 64 columns by 1000 of K of a multiprocessor with one
// block. The constants are fitted to the times of products with uint4b8 and uint8b128, bf16, groups of 128, 8 to 32
// tokens on an H200 (2026-11-23; the N and K of Qwen3-VL-235B and DeepSeek-V3): of these the model's choice is 3% above
// the best.
template <class C>
double cost(const MarlinGemmParams& params, int splits) {
  constexpr double kMerge = 0.24, kMergeSplit = 0.106, kColumn = 0.167, kFurtherWaves = 2.9;
  constexpr double kTwoBlocks = C::kBlocks == 2 ? 1.79 : 2.0;  // two of them, side by side or in turn
  // Not all multiprocessors belong to a cluster of more than two.
  const int64_t room = splits <= 2 ? 132 : 115;
  const int64_t blocks = (params.n + C::kColumns - 1) / C::kColumns * splits, waves = (blocks + room - 1) / room;
  const int64_t stages = (params.k + C::kStageK - 1) / C::kStageK, longest = (stages + splits - 1) / splits;
  return (waves == 2 ? kTwoBlocks : static_cast<double>(waves)) * C::kColumnWarps *
             static_cast<double>(longest * C::kStageK) / 1000.0 +
         kColumn * C::kColumnWarps + (splits > 1 ? kMerge + kMergeSplit * splits : 0.0) +
         (waves > 2 ? kFurtherWaves : 0.0);
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

template <class Narrow, class Wide>
Status choose_columns(const MarlinGemmParams& params, Stream stream) {
  const Plan narrow = plan<Narrow>(params), wide = plan<Wide>(params);
  return narrow.cost <= wide.cost ? multiply<Narrow>(params, narrow.splits, stream)
                                  : multiply<Wide>(params, wide.splits, stream);
}

template <class T, Format kFormat, bool kZeros, int kTiles>
Status choose_tokens(const MarlinGemmParams& params, Stream stream) {
  if (params.m <= 8) {
    return choose_columns<Config<T, kFormat, kZeros, kTiles, 1, 1>, Config<T, kFormat, kZeros, kTiles, 1, 2>>(params,
                                                                                                              stream);
  }
  if (params.m <= 16) {
    return choose_columns<Config<T, kFormat, kZeros, kTiles, 2, 1>, Config<T, kFormat, kZeros, kTiles, 2, 2>>(params,
                                                                                                              stream);
  }
  return choose_columns<Config<T, kFormat, kZeros, kTiles, 4, 1>, Config<T, kFormat, kZeros, kTiles, 4, 4>>(params,
                                                                                                            stream);
}

template <class T, Format kFormat, int kTiles>
Status choose_zeros(const MarlinGemmParams& params, Stream stream) {
  return params.zeros != nullptr ? choose_tokens<T, kFormat, true, kTiles>(params, stream)
                                 : choose_tokens<T, kFormat, false, kTiles>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET::marlin_few_tokens
