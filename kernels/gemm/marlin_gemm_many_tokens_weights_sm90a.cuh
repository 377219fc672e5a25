// The weights of marlin_gemm_many_tokens_sm90a.cuh: a stage of them in shared memory, and from there to operand A.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/device/pipeline_sm90.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/wgmma_registers_sm90.cuh"
#include "kernels/gemm/marlin_gemm_decode.cuh"
#include "kernels/gemm/marlin_layout.h"

namespace sgl_kernel::SGL_TARGET::many_tokens {

using namespace marlin;

inline constexpr int kWarpgroup = 128, kWarpgroups = 2;  // threads of one; those that multiply
inline constexpr int kColumns = kWarpgroups * kMarlinTileN;
inline constexpr int kStageK = kSwizzleBytes / 2;      // of a stage: a row of the swizzle
inline constexpr int kSteps = kStageK / kMarlinTileK;  // of wgmma
inline constexpr int kWeightElement = 8;               // bytes: a box has 256 elements across at most
inline constexpr int kScaleRowBytes = kColumns * 2;    // of a group; with float4 of a pair of groups
inline constexpr int kSharedBytes = 227 * 1024;        // what a block can have
inline constexpr int kOtherBytes = 256;                // room for barriers
inline constexpr int kBoxAlignment = 128;              // of boxes that are not swizzled
inline constexpr int kMostStages = 8;

template <class T_, Format kFormat_, int kTokens_>
struct Config {
  using T = T_;
  static constexpr Format kFormat = kFormat_;
  static constexpr int kTokens = kTokens_, kBits = bits_of(kFormat);
  static constexpr bool kIsInteger = kFormat == Format::kInt4 || kFormat == Format::kInt8;
  static constexpr int kTileBytes = kMarlinTileK * kMarlinTileN * kBits / 8;
  static constexpr int kTokenBytes = kTokens * kSwizzleBytes, kWeightBytes = kSteps * kWarpgroups * kTileBytes;
  static constexpr int kZeroRowBytes = kIsInteger ? kColumns * kBits / 8 : kBoxAlignment / kSteps;
  // Tokens of a box of the result, of which each warpgroup has two on their way to memory.
  static constexpr int kPanel = kTokens % 64 == 0 ? 64 : kTokens % 32 == 0 ? 32 : 16;
  static constexpr int kPanelBytes = kPanel * kMarlinTileN * 2;
  static constexpr int kStageBytes = kTokenBytes + kWeightBytes + kSteps * (kScaleRowBytes + kZeroRowBytes);
  static constexpr int kStages =
      std::min(kMostStages, (kSharedBytes - kOtherBytes - kWarpgroups * 2 * kPanelBytes) / kStageBytes);
  static constexpr int kThreads = (1 + kWarpgroups) * kWarpgroup;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;  // of a thread; together no more than 65536
  static constexpr int kGroupRows = 1024 / kTokens;                        // tiles of a group, one below the other
};

template <class C>
struct SharedMemory {
  alignas(kSwizzleAtomBytes) uint8_t tokens[C::kStages][C::kTokenBytes];
  alignas(kSwizzleAtomBytes) uint8_t panels[kWarpgroups][2][C::kPanelBytes];
  // By step the tiles of the columns side by side; then the groups of the stage, kSteps of them at most.
  alignas(kBoxAlignment) uint8_t weights[C::kStages][C::kWeightBytes];
  alignas(kBoxAlignment) uint8_t scales[C::kStages][kSteps * kScaleRowBytes];
  alignas(kBoxAlignment) uint8_t zeros[C::kStages][kSteps * C::kZeroRowBytes];
  Barrier full[C::kStages], empty[C::kStages];
};

struct Call {
  const void* column_scales;  // of one group, else null
  const void* global_scale;   // or null
  float factor;
  int n;
  int stages;  // of K
  int splits;  // of K: blocks of a cluster
  int token_tiles, column_tiles;
  int box_tokens;
  bool has_scales, has_zeros;  // of groups; packed
  int group_rows;              // rows of scales, and of zeros, of a stage
  int stages_per_row;          // 1, or how many stages share a row
  int step_shift;              // step i of a stage is of its row i >> step_shift
  MarlinType type;
};

// Operand A of a stage: by step of K.
using Weights = uint32_t[kSteps][4];

__device__ __forceinline__ void pin_weights(Weights& weights) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) pin_registers(weights[step]);
}

__device__ __forceinline__ uint32_t load_word(const uint8_t* shared) {
  return *reinterpret_cast<const uint32_t*>(shared);
}

// What a lane reads of a stage. Its two columns of the tile of its warpgroup are 16 * warp + lane / 4, and 8 more;
// their scales and their zero points are neighbours in Marlin's order of columns.
template <class C>
struct Packed {
  using Word = std::conditional_t<C::kBits == 4, uint32_t, uint2>;
  Word words[kSteps];
  uint32_t scales[kSteps], zeros[kSteps];  // by step; if the stage is of one group, the first alone
};

template <class C>
class Decoder {
 public:
  using T = typename C::T;

  __device__ __forceinline__ Decoder(const Call& call, const SharedMemory<C>& shared)
      : shared_(shared),
        step_shift_(call.step_shift),
        has_scales_(call.has_scales),
        has_zeros_(C::kIsInteger && call.has_zeros) {
    const int thread = threadIdx.x % kWarpgroup, warpgroup = threadIdx.x / kWarpgroup;
    const int warp = thread / 32, lane = thread % 32, g = lane / 4;
    weight_offset_ = warpgroup * C::kTileBytes + lane * (C::kTileBytes / 32) + warp * C::kBits;
    if constexpr (kIsFp4) {
      // Of eight columns' 16 bytes 8 are of the first group; see marlin_fp4_scale_byte().
      scale_offset_ = warpgroup * (kScaleRowBytes / kWarpgroups) + g * 16 + warp / 2 * 4;
      shift_ = 8 * (warp % 2);
    } else {
      scale_offset_ = warpgroup * (kScaleRowBytes / kWarpgroups) + g * 16 + warp * 4;
    }
    if constexpr (C::kIsInteger) {
      zero_offset_ = warpgroup * (C::kZeroRowBytes / kWarpgroups) + (C::kBits == 4 ? g : 2 * g + warp / 2) * 4;
      shift_ = C::kBits * (C::kBits == 4 ? warp : warp % 2);
      static_assert(marlin_zero_bit(4, 2) == 4 && marlin_zero_bit(4, 3) == 20 && marlin_zero_bit(8, 3) == 24);
      const uint32_t zero = call.type == MarlinType::kU4B8 ? 8 : call.type == MarlinType::kU8B128 ? 128 : 0;
      constant_bias_ = zero_bias<T, C::kFormat>(zero);
      asm volatile("" : "+r"(constant_bias_));  // keeps the compiler from computing it anew each time
    }
  }

  __device__ __forceinline__ void load(int stage, Packed<C>& packed) const {
    using Word = typename Packed<C>::Word;
    const uint8_t* const words = shared_.weights[stage] + weight_offset_;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      packed.words[step] = *reinterpret_cast<const Word*>(words + step * kWarpgroups * C::kTileBytes);
    }
    const uint8_t* const scales = shared_.scales[stage] + scale_offset_;
    const uint8_t* const zeros = shared_.zeros[stage] + zero_offset_;
    packed.scales[0] = kUnscaled;
    if (kIsFp4 || has_scales_) packed.scales[0] = load_word(scales);
    if (has_zeros_) packed.zeros[0] = load_word(zeros);
    if (!one_group()) {
#pragma unroll
      for (int step = 1; step < kSteps; ++step) {
        const int in_row = kIsFp4 ? step % 2 * 8 : 0;
        packed.scales[step] = load_word(scales + (step >> step_shift_) * kScaleRowBytes + in_row);
        if (has_zeros_) packed.zeros[step] = load_word(zeros + (step >> step_shift_) * C::kZeroRowBytes);
      }
    }
  }

  __device__ __forceinline__ void decode(const Packed<C>& packed, Weights& weights) const {
    if constexpr (kIsFp4) {
      decode_steps<false, false>(packed, weights);
    } else if (one_group()) {
      has_zeros_ ? decode_steps<true, true>(packed, weights) : decode_steps<true, false>(packed, weights);
    } else {
      has_zeros_ ? decode_steps<false, true>(packed, weights) : decode_steps<false, false>(packed, weights);
    }
  }

 private:
  static constexpr bool kIsFp4 = C::kFormat == Format::kE2M1;

  // The product with a scale makes up for kRebias, too.
  static constexpr uint32_t kUnscaled = C::kFormat == Format::kE4M3 ? kRebias<T, C::kFormat>
                                        : kIsHalf<T>                ? 0x3c003c00
                                                                    : 0x3f803f80;

  // Whether all steps of a stage have the same scales.
  __device__ __forceinline__ bool one_group() const { return !kIsFp4 && kSteps >> step_shift_ == 1; }

  template <bool kOneGroup, bool kZeros>
  __device__ __forceinline__ void decode_steps(const Packed<C>& packed, Weights& weights) const {
    uint32_t first_scale, second_scale, first_bias = constant_bias_, second_bias = constant_bias_;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step == 0 || !kOneGroup) {
        const uint32_t scales = scale_pair(packed.scales[step]);
        first_scale = __byte_perm(scales, 0, 0x1010);  // each twice
        second_scale = __byte_perm(scales, 0, 0x3232);
        if constexpr (C::kIsInteger && kZeros) {
          constexpr uint32_t kMask = C::kBits == 4 ? 0x000f000f : 0x00ff00ff;
          const uint32_t zeros = packed.zeros[step] >> shift_ & kMask;
          first_bias = zero_bias<T, C::kFormat>(zeros & 0xffff);
          second_bias = zero_bias<T, C::kFormat>(zeros >> 16);
        }
      }
      uint32_t (&a)[4] = weights[step];
      if constexpr (C::kBits == 4) {
        decode_raw<T, C::kFormat>(packed.words[step], 0, first_bias, a[0], a[2]);
        decode_raw<T, C::kFormat>(packed.words[step], 1, second_bias, a[1], a[3]);
      } else {
        decode_raw<T, C::kFormat>(packed.words[step].x, 0, first_bias, a[0], a[2]);
        decode_raw<T, C::kFormat>(packed.words[step].y, 0, second_bias, a[1], a[3]);
      }
      a[0] = multiply_pairs<T>(a[0], first_scale);
      a[1] = multiply_pairs<T>(a[1], second_scale);
      a[2] = multiply_pairs<T>(a[2], first_scale);
      a[3] = multiply_pairs<T>(a[3], second_scale);
    }
  }

  // The low half is of the first column.
  __device__ __forceinline__ uint32_t scale_pair(uint32_t word) const {
    if constexpr (!kIsFp4) return word;
    const uint32_t bytes = word >> shift_ & 0x00ff00ff;
    if constexpr (kIsHalf<T>) return bytes << 7;
    constexpr uint32_t kTwoTo106 = 0x74807480;  // twice: see factor_of()
    return multiply_pairs<T>(multiply_pairs<T>(bytes << 4, kTwoTo106), kTwoTo106);
  }

  const SharedMemory<C>& shared_;
  const int step_shift_;
  const bool has_scales_, has_zeros_;
  int weight_offset_, scale_offset_, zero_offset_ = 0, shift_ = 0;
  uint32_t constant_bias_ = 0;
};

}  // namespace sgl_kernel::SGL_TARGET::many_tokens
