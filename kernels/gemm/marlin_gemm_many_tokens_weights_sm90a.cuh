// The weights of marlin_gemm_many_tokens_sm90a.cuh: a stage of them in shared memory, and from there to operand A.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/device/pipeline_sm90.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/wgmma_registers_sm90.cuh"
#include "kernels/gemm/marlin_gemm_decode.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"
#include "kernels/gemm/marlin_layout.h"

namespace sgl_kernel::SGL_TARGET::many_tokens {

using namespace marlin;

inline constexpr int kWarpgroup = 128;                 // threads
inline constexpr int kStageK = kSwizzleBytes / 2;      // of a stage: a row of the swizzle
inline constexpr int kSteps = kStageK / kMarlinTileK;  // of wgmma
inline constexpr int kWeightElement = 8;               // bytes: a box has 256 elements across at most
inline constexpr int kSharedBytes = 227 * 1024;        // what a block can have
inline constexpr int kOtherBytes = 256;                // room for barriers
inline constexpr int kBoxAlignment = 128;              // of boxes that are not swizzled
inline constexpr int kMostStages = 8;

template <class T_, Format kFormat_, int kWarpgroups_, int kTokens_>
struct Config {
  using T = T_;
  static constexpr Format kFormat = kFormat_;
  static constexpr int kWarpgroups = kWarpgroups_;  // that multiply
  static constexpr int kColumns = kWarpgroups * kMarlinTileN;
  static constexpr int kTokens = kTokens_, kBits = bits_of(kFormat);
  static constexpr bool kIsInteger = kFormat == Format::kInt4 || kFormat == Format::kInt8;
  static constexpr int kTileBytes = kMarlinTileK * kMarlinTileN * kBits / 8;
  static constexpr int kTokenBytes = kTokens * kSwizzleBytes, kWeightBytes = kSteps * kWarpgroups * kTileBytes;
  static constexpr int kScaleRowBytes = kColumns * 2;  // of a group; with float4 of a pair of groups
  static constexpr int kZeroRowBytes = kIsInteger ? kColumns * kBits / 8 : kBoxAlignment / kSteps;
  // Tokens of a box of the result, of which each warpgroup has two on their way to memory.
  static constexpr int kPanel = token_panel(kTokens);
  static constexpr int kPanelBytes = kPanel * kMarlinTileN * 2;
  static constexpr int kStageBytes = kTokenBytes + kWeightBytes + kSteps * (kScaleRowBytes + kZeroRowBytes);
  static constexpr int kStages =
      std::min(kMostStages, (kSharedBytes - kOtherBytes - kWarpgroups * 2 * kPanelBytes) / kStageBytes);
  static constexpr int kThreads = (1 + kWarpgroups) * kWarpgroup;
  // Of a thread; together no more than 65536.
  static constexpr int kProducerRegisters = kWarpgroups == 2 ? 40 : 32,
                       kConsumerRegisters = kWarpgroups == 2 ? 232 : 160;
  static constexpr int kGroupRows = 1024 / kTokens;  // tiles of a group, one below the other
};

template <class C>
struct SharedMemory {
  alignas(kSwizzleAtomBytes) uint8_t tokens[C::kStages][C::kTokenBytes];
  // By warpgroup the tiles of its columns; then the groups of the stage, kSteps of them at most.
  alignas(kBoxAlignment) uint8_t weights[C::kStages][C::kWeightBytes];
  alignas(kSwizzleAtomBytes) uint8_t panels[C::kWarpgroups][2][C::kPanelBytes];
  alignas(kBoxAlignment) uint8_t scales[C::kStages][kSteps * C::kScaleRowBytes];
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

__device__ __forceinline__ uint32_t load_word(const uint8_t* shared) {
  return *reinterpret_cast<const uint32_t*>(shared);
}

// Which columns of its warpgroup's 64 a lane decodes: 16 * block + lane / 4, and 8 more. A row of operand A may be any
// column; were a block a warp's, all its lanes' words would lie in a quarter of the banks. Of 8-bit numbers the columns
// are two words, and every other lane / 4 takes the second one first.
template <class C>
struct Columns {
  int block;
  bool swapped;

  __device__ __forceinline__ Columns()
      : block((threadIdx.x / 32 + threadIdx.x % 32 / 8) % 4), swapped(C::kBits == 8 && threadIdx.x / 4 % 2 == 1) {}

  // Of row lane / 4 of operand A (which = 0), and of 8 rows below.
  __device__ __forceinline__ int column(int which) const {
    return 16 * block + threadIdx.x % 32 / 4 + 8 * (which ^ static_cast<int>(swapped));
  }
};

// What a lane reads of a stage. The scales and the zero points of its two columns are neighbours in Marlin's order of
// columns.
template <class C>
struct Packed {
  uint32_t words[kSteps][C::kBits / 4];
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
    const Columns<C> columns;
    const int warpgroup = threadIdx.x / kWarpgroup, lane = threadIdx.x % 32, g = lane / 4, block = columns.block;
    weight_offset_ = warpgroup * kSteps * C::kTileBytes + lane * (C::kTileBytes / 32) + block * C::kBits;
    swapped_ = columns.swapped;
    if constexpr (kIsFp4) {
      // Of eight columns' 16 bytes 8 are of the first group; see marlin_fp4_scale_byte().
      scale_offset_ = warpgroup * (C::kScaleRowBytes / C::kWarpgroups) + g * 16 + block / 2 * 4;
      shift_ = 8 * (block % 2);
    } else {
      scale_offset_ = warpgroup * (C::kScaleRowBytes / C::kWarpgroups) + g * 16 + block * 4;
    }
    if constexpr (C::kIsInteger) {
      zero_offset_ = warpgroup * (C::kZeroRowBytes / C::kWarpgroups) + (C::kBits == 4 ? g : 2 * g + block / 2) * 4;
      shift_ = C::kBits * (C::kBits == 4 ? block : block % 2);
      static_assert(marlin_zero_bit(4, 2) == 4 && marlin_zero_bit(4, 3) == 20 && marlin_zero_bit(8, 3) == 24);
      const uint32_t zero = call.type == MarlinType::kU4B8 ? 8 : call.type == MarlinType::kU8B128 ? 128 : 0;
      constant_bias_ = zero_bias<T, C::kFormat>(zero);
      asm volatile("" : "+r"(constant_bias_));  // keeps the compiler from computing it anew each time
    }
  }

  // What a stage's words are multiplied with, of a step.
  struct Factors {
    uint32_t scales[2], biases[2];  // of the two columns, each twice
  };

  // kOneGroup: all steps of a stage have the same scales, and zero points.
  template <bool kOneGroup, bool kZeros>
  __device__ __forceinline__ void load(int stage, Packed<C>& packed) const {
    const uint8_t* const words = shared_.weights[stage] + weight_offset_;
    const int first = swapped_ ? 4 : 0;  // bytes
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      packed.words[step][0] = load_word(words + step * C::kTileBytes + first);
      if constexpr (C::kBits == 8) packed.words[step][1] = load_word(words + step * C::kTileBytes + (first ^ 4));
    }
    const uint8_t* const scales = shared_.scales[stage] + scale_offset_;
    const uint8_t* const zeros = shared_.zeros[stage] + zero_offset_;
    packed.scales[0] = kUnscaled;
    if (kIsFp4 || has_scales_) packed.scales[0] = load_word(scales);
    if constexpr (kZeros) packed.zeros[0] = load_word(zeros);
    if constexpr (!kOneGroup) {
#pragma unroll
      for (int step = 1; step < kSteps; ++step) {
        const int in_row = kIsFp4 ? step % 2 * 8 : 0;
        packed.scales[step] = load_word(scales + (step >> step_shift_) * C::kScaleRowBytes + in_row);
        if constexpr (kZeros) packed.zeros[step] = load_word(zeros + (step >> step_shift_) * C::kZeroRowBytes);
      }
    }
  }

  // A step of a stage; `factors` are carried from one step to the next.
  template <bool kOneGroup, bool kZeros>
  __device__ __forceinline__ void decode(const Packed<C>& packed, int step, Factors& factors, uint32_t (&a)[4]) const {
    if (step == 0 || !kOneGroup) {
      const int first = swapped_ ? 0x3232 : 0x1010;  // choose one of a pair, twice
      const int second = swapped_ ? 0x1010 : 0x3232;
      const uint32_t scales = scale_pair(packed.scales[step]);
      factors.scales[0] = __byte_perm(scales, 0, first);
      factors.scales[1] = __byte_perm(scales, 0, second);
      factors.biases[0] = factors.biases[1] = constant_bias_;
      if constexpr (kZeros) {
        constexpr uint32_t kMask = C::kBits == 4 ? 0x000f000f : 0x00ff00ff;
        const uint32_t zeros = packed.zeros[step] >> shift_ & kMask;
        factors.biases[0] = zero_bias<T, C::kFormat>(__byte_perm(zeros, 0, first));
        factors.biases[1] = zero_bias<T, C::kFormat>(__byte_perm(zeros, 0, second));
      }
    }
    const uint32_t (&words)[C::kBits / 4] = packed.words[step];
    decode_raw<T, C::kFormat, !kZeros>(words[0], 0, factors.biases[0], a[0], a[2]);
    decode_raw<T, C::kFormat, !kZeros>(words[C::kBits / 8], C::kBits == 4 ? 1 : 0, factors.biases[1], a[1], a[3]);
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = multiply_pairs<T>(a[i], factors.scales[i % 2]);
  }

  __device__ __forceinline__ bool has_zeros() const { return has_zeros_; }

  // Whether all steps of a stage have the same scales.
  __device__ __forceinline__ bool one_group() const { return !kIsFp4 && kSteps >> step_shift_ == 1; }

 private:
  static constexpr bool kIsFp4 = C::kFormat == Format::kE2M1;

  // The product with a scale makes up for kRebias, too.
  static constexpr uint32_t kUnscaled = C::kFormat == Format::kE4M3 ? kRebias<T, C::kFormat>
                                        : kIsHalf<T>                ? 0x3c003c00
                                                                    : 0x3f803f80;

  // The low half is of the first column.
  __device__ __forceinline__ uint32_t scale_pair(uint32_t word) const {
    return kIsFp4 ? fp4_scale_pair<T>(word >> shift_) : word;
  }

  const SharedMemory<C>& shared_;
  const int step_shift_;
  const bool has_scales_, has_zeros_;
  bool swapped_;
  int weight_offset_, scale_offset_, zero_offset_ = 0, shift_ = 0;
  uint32_t constant_bias_ = 0;
};

}  // namespace sgl_kernel::SGL_TARGET::many_tokens
