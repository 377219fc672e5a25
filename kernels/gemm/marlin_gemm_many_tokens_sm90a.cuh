// gptq_marlin_gemm of many tokens on Hopper: wgmma with weights that are decoded in registers.
//
// Operands are swapped: a tile is 128 columns of the result by kTokens tokens, and each of the two warpgroups that
// multiply has 64 of the columns. A word of Marlin's layout is what a lane holds of operand A of wgmma.m64nNk16, so the
// weights go from shared memory to registers, are decoded there, each of them once for all tokens of the tile, and
// never return. While the tensor cores multiply one stage of K, the next one is decoded.
//
// The scales of several groups join the weights before the product, rounded to a's dtype; one group's join the sums.
//
// Grid: a persistent block a multiprocessor. Tiles are taken in groups of some rows of tiles, column by column, so that
// what runs at a time shares its operands in the L2 cache. A producer thread runs ahead into the next tile.
#pragma once

#include <algorithm>
#include <utility>

#include "kernels/device/pdl.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/wgmma_registers_sm90.cuh"
#include "kernels/gemm/marlin_gemm_decode.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"
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

struct Maps {
  CUtensorMap tokens, weights, scales, zeros, result;
};

struct Call {
  const void* column_scales;  // of one group, else null
  const void* global_scale;   // or null
  float factor;
  int n;
  int stages;  // of K
  int token_tiles, column_tiles;
  int box_tokens;
  bool has_scales, has_zeros;  // of groups; packed
  int group_rows;              // rows of scales, and of zeros, of a stage
  int stages_per_row;          // 1, or how many stages share a row
  int step_shift;              // step i of a stage is of its row i >> step_shift
  MarlinType type;
};

struct Tile {
  int token, column;  // of the tile's first element
};

template <class C>
__device__ __forceinline__ Tile find_tile(const Call& call, int index) {
  const int group_size = C::kGroupRows * call.column_tiles;
  const int group = index / group_size;
  const int in_group = index - group * group_size;
  const int rows = min(C::kGroupRows, call.token_tiles - group * C::kGroupRows);
  const int column = in_group / rows;
  const int row = group * C::kGroupRows + in_group - column * rows;
  return {row * C::kTokens, column * kColumns};
}

// The producers: a thread for each of the tokens, the weights, and the scales and zero points. Asking the copy engine
// for a box takes a thread so long that one for all would not keep up.
enum class Producer { kTokens, kWeights, kGroups };

template <class C, Producer kProducer>
__device__ __forceinline__ void produce(const Call& call, const Maps& maps, SharedMemory<C>& shared) {
  const int tiles = call.token_tiles * call.column_tiles;
  const int bytes =
      kProducer == Producer::kTokens ? call.box_tokens * kSwizzleBytes
      : kProducer == Producer::kWeights
          ? C::kWeightBytes
          : call.group_rows * ((call.has_scales ? kScaleRowBytes : 0) + (call.has_zeros ? C::kZeroRowBytes : 0));
  RingPosition<C::kStages> at;
  for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = find_tile<C>(call, index);
    int row = 0, stages_of_row = 0;
    for (int stage = 0; stage < call.stages; ++stage) {
      Barrier* const full = &shared.full[at.index];
      shared.empty[at.index].wait(at.parity ^ 1);
      full->arrive_and_expect(bytes);
      if constexpr (kProducer == Producer::kTokens) {
        load_matrix_box(shared.tokens[at.index], &maps.tokens, full, tile.token, stage * kStageK);
      } else if constexpr (kProducer == Producer::kWeights) {
        const int column = tile.column / kMarlinTileN * (C::kTileBytes / kWeightElement);
        load_matrix_box(shared.weights[at.index], &maps.weights, full, stage * kSteps, column);
      } else {
        if (call.has_scales) load_matrix_box(shared.scales[at.index], &maps.scales, full, row, tile.column);
        if (call.has_zeros) {
          load_matrix_box(shared.zeros[at.index], &maps.zeros, full, row, tile.column * C::kBits / 8);
        }
        if (++stages_of_row == call.stages_per_row) {
          row += call.group_rows;
          stages_of_row = 0;
        }
      }
      at.advance();
    }
  }
}

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

// Four tiles of 8 x 8 numbers to shared memory, each transposed: lane i points at row i % 8 of tile i / 8 as it is
// stored, and gives the pair of rows 2 * (i % 4) of column i / 4 of each tile.
__device__ __forceinline__ void store_transposed(void* row, const uint32_t (&tiles)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(tiles[0]), "r"(tiles[1]), "r"(tiles[2]), "r"(tiles[3])
               : "memory");
}

template <class C>
using Sums = float[C::kTokens / 2];

// Rounds a warpgroup's sums and sends them off, a panel of tokens at a time. `panels` counts those sent so far.
template <class C>
__device__ __forceinline__ void store_tile(SharedMemory<C>& shared, const CUtensorMap* result_map, int first_token,
                                           int first_column, int warpgroup, const float (&scales)[2], int& panels,
                                           Sums<C>& sums) {
  constexpr int kRowBytes = kMarlinTileN * 2;
  static_assert(kRowBytes == kSwizzleBytes);
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = threadIdx.x % 32;
  // store_transposed(): the token and the chunk of 8 columns that this lane's address stands for.
  const int stored_token = lane / 16 * 8 + lane % 8, stored_chunk = (2 * warp + lane / 8 % 2) ^ (lane % 8);
#pragma unroll
  for (int panel = 0; panel < C::kTokens / C::kPanel; ++panel) {
    uint8_t* const staged = shared.panels[warpgroup][panels & 1];
    // The panel's last occupant must have been read.
    if (thread == 0) wait_for_store_reads<1>();
    named_barrier_sync(1 + warpgroup, kWarpgroup);
#pragma unroll
    for (int pair = 0; pair < C::kPanel / 16; ++pair) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const sum = &sums[4 * (panel * C::kPanel / 8 + 2 * pair + i / 2) + 2 * (i % 2)];
        words[i] = bit_cast<uint32_t>(mixed_mm::to_pair<typename C::T>(sum[0] * scales[i % 2], sum[1] * scales[i % 2]));
      }
      store_transposed(staged + (16 * pair + stored_token) * kRowBytes + stored_chunk * 16, words);
    }
    fence_shared_for_async_proxy();
    named_barrier_sync(1 + warpgroup, kWarpgroup);
    if (thread == 0) {
      store_matrix_box(result_map, staged, first_token + panel * C::kPanel, first_column);
      commit_stores();
    }
    ++panels;
  }
}

// What is left to multiply a lane's two columns by.
template <class C>
__device__ __forceinline__ void load_scales(const Call& call, int first_column, float (&scales)[2]) {
  using T = typename C::T;
  const int column = threadIdx.x % kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4;
  const float factor = mixed_mm::result_factor(static_cast<const T*>(call.global_scale), call.factor);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    scales[r] = factor;
    if (call.column_scales != nullptr && first_column < call.n) {
      scales[r] *= static_cast<float>(
          static_cast<const T*>(call.column_scales)[first_column + marlin_scale_place(column + 8 * r, false)]);
    }
  }
}

template <class C>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const Call& call, SharedMemory<C>& shared)
      : shared_(shared), decoder_(call, shared), num_stages_(call.stages) {}

  // The sums of a tile. While a stage is multiplied the next one is decoded.
  __device__ __forceinline__ void multiply(Sums<C>& sums) {
    Weights even, odd;
    Packed<C> packed;
    shared_.full[at_.index].wait(at_.parity);
    decoder_.load(at_.index, packed);
    decoder_.decode(packed, even);
    int stage = 0;
    for (; stage + 1 < num_stages_; stage += 2) {
      step(sums, even, odd, stage == 0, true);
      step(sums, odd, even, false, stage + 2 < num_stages_);
    }
    if (stage < num_stages_) step(sums, even, odd, stage == 0, false);
    wait_wgmma<0>();
    pin_registers(sums);
    pin_weights(even);
    pin_weights(odd);
    release(previous_);
    previous_ = -1;
  }

 private:
  __device__ __forceinline__ void step(Sums<C>& sums, Weights& weights, Weights& next, bool fresh, bool more) {
    pin_registers(sums);
    pin_weights(weights);
    open_wgmma();
    const uint64_t tokens = make_descriptor(shared_address(shared_.tokens[at_.index]), 0);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      wgmma_registers_transposed<typename C::T, C::kTokens>(
          sums, weights[i], tokens + descriptor_offset(i * kMarlinTileK * 2), i == 0 ? !fresh : 1);
    }
    commit_wgmma();
    pin_registers(sums);
    const int multiplied = at_.index;
    at_.advance();
    Packed<C> packed;
    if (more) {
      shared_.full[at_.index].wait(at_.parity);
      decoder_.load(at_.index, packed);
    }
    if (previous_ >= 0) {
      wait_wgmma<1>();
      pin_weights(next);  // the last stage's: free from here on
      release(previous_);
    }
    previous_ = multiplied;
    if (more) decoder_.decode(packed, next);
  }

  // Every thread says that it has read the stage.
  __device__ __forceinline__ void release(int stage) {
#ifdef ONE_ARRIVES
    __syncwarp();
    if (threadIdx.x % 32 == 0)
#endif
      shared_.empty[stage].arrive();
  }

  SharedMemory<C>& shared_;
  const Decoder<C> decoder_;
  const int num_stages_;
  RingPosition<C::kStages> at_;
  int previous_ = -1;  // a stage that is being multiplied, beside the last one
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    many_tokens_kernel(const __grid_constant__ Call call, const __grid_constant__ Maps maps) {
  extern __shared__ __align__(kSwizzleAtomBytes) uint8_t dynamic_shared[];
  SharedMemory<C>& shared = *reinterpret_cast<SharedMemory<C>*>(dynamic_shared);
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0);
  const bool has_groups = call.has_scales || call.has_zeros;
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&maps.tokens);
    prefetch_tensor_map(&maps.weights);
    prefetch_tensor_map(&maps.result);
    if (call.has_scales) prefetch_tensor_map(&maps.scales);
    if (call.has_zeros) prefetch_tensor_map(&maps.zeros);
    for (int stage = 0; stage < C::kStages; ++stage) {
      shared.full[stage].init(has_groups ? 3 : 2);  // producers
      shared.empty[stage].init(kWarpgroups * kWarpgroup);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (warpgroup == kWarpgroups) {
    give_back_registers_down_to<C::kProducerRegisters>();
    const int warp = threadIdx.x % kWarpgroup / 32;
    if (threadIdx.x % 32 == 0) {
      wait_for_predecessor();
      if (warp == 0) produce<C, Producer::kTokens>(call, maps, shared);
      if (warp == 1) produce<C, Producer::kWeights>(call, maps, shared);
      if (warp == 2 && has_groups) produce<C, Producer::kGroups>(call, maps, shared);
    }
  } else {
    take_registers_up_to<C::kConsumerRegisters>();
    wait_for_predecessor();
    const int tiles = call.token_tiles * call.column_tiles;
    Consumer<C> consumer(call, shared);
    int panels = 0;
    for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
      const Tile tile = find_tile<C>(call, index);
      const int first_column = tile.column + warpgroup * kMarlinTileN;
      float scales[2];
      load_scales<C>(call, first_column, scales);
      Sums<C> sums;
      consumer.multiply(sums);
      if (index + static_cast<int>(gridDim.x) >= tiles) release_successors();
      if (first_column < call.n) {
        store_tile<C>(shared, &maps.result, tile.token, first_column, warpgroup, scales, panels, sums);
      }
    }
    if (threadIdx.x % kWarpgroup == 0) wait_for_store_reads<0>();
  }
}

// What the sums lack: of a float4's weights decode_raw() leaves out 2^14 (bf16: 2^126) and the scales as they are
// multiplied with them hold 2^7 (bf16: 2^107), of which the global scale has its share; of a float8's one group
// b_scales hold 2^8 (bf16: 2^120).
template <class C>
constexpr float factor_of(bool one_group) {
  if (C::kFormat == Format::kE2M1) return kIsHalf<typename C::T> ? 1.0f : 0x1p-100f;
  return one_group ? kScaleFactor<typename C::T, C::kFormat> : 1.0f;
}

template <class C>
Status launch_tiles(const MarlinGemmParams& params, Stream stream) {
  static_assert(sizeof(SharedMemory<C>) <= kSharedBytes);
  constexpr char kName[] = "gptq_marlin_gemm";
  constexpr bool kIsFp4 = C::kFormat == Format::kE2M1;
  const bool one_group = params.num_groups == 1;
  const int groups = static_cast<int>(std::max<int64_t>(1, kStageK / params.group_size));  // of a stage
  const Call call = {.column_scales = one_group ? params.scales : nullptr,
                     .global_scale = params.global_scale,
                     .factor = factor_of<C>(one_group),
                     .n = static_cast<int>(params.n),
                     .stages = static_cast<int>(params.k / kStageK),
                     .token_tiles = static_cast<int>((params.m + C::kTokens - 1) / C::kTokens),
                     .column_tiles = static_cast<int>((params.n + kColumns - 1) / kColumns),
                     .box_tokens = static_cast<int>(std::min<int64_t>(params.m, C::kTokens)),
                     .has_scales = !one_group,
                     .has_zeros = params.zeros != nullptr,
                     .group_rows = kIsFp4 ? groups / 2 : groups,
                     .stages_per_row = static_cast<int>(std::max<int64_t>(1, params.group_size / kStageK)),
                     .step_shift = kIsFp4 || groups == 2 ? 1
                                   : groups == 1         ? 2
                                                         : 0,
                     .type = params.type};
  const bool gathered = params.gathered != nullptr;
  const uint64_t n = static_cast<uint64_t>(params.n), num_groups = static_cast<uint64_t>(params.num_groups);
  const uint64_t weight_row = n / kMarlinTileN * C::kTileBytes, zero_row = n * C::kBits / 8;
  const uint32_t group_rows = static_cast<uint32_t>(call.group_rows);
  Maps maps = {};
  SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.tokens,
                                        {.data = const_cast<void*>(gathered ? params.gathered : params.a),
                                         .rows = static_cast<uint64_t>(params.m),
                                         .columns = static_cast<uint64_t>(params.k),
                                         .row_bytes = static_cast<uint64_t>(gathered ? params.k : params.a_stride) * 2,
                                         .box_rows = static_cast<uint32_t>(call.box_tokens),
                                         .box_columns = kStageK,
                                         .element_bytes = 2}));
  SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.weights,
                                        {.data = const_cast<uint32_t*>(params.weight),
                                         .rows = static_cast<uint64_t>(params.k / kMarlinTileK),
                                         .columns = weight_row / kWeightElement,
                                         .row_bytes = weight_row,
                                         .box_rows = kSteps,
                                         .box_columns = kWarpgroups * C::kTileBytes / kWeightElement,
                                         .element_bytes = kWeightElement,
                                         .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  if (call.has_scales) {
    SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.scales,
                                          {.data = const_cast<void*>(params.scales),
                                           .rows = kIsFp4 ? num_groups / 2 : num_groups,
                                           .columns = n,
                                           .row_bytes = n * 2,
                                           .box_rows = group_rows,
                                           .box_columns = kColumns,
                                           .element_bytes = 2,
                                           .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  }
  if (call.has_zeros) {
    SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.zeros,
                                          {.data = const_cast<void*>(params.zeros),
                                           .rows = num_groups,
                                           .columns = zero_row,
                                           .row_bytes = zero_row,
                                           .box_rows = group_rows,
                                           .box_columns = C::kZeroRowBytes,
                                           .element_bytes = 1,
                                           .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  }
  SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.result,
                                        {.data = params.result,
                                         .rows = static_cast<uint64_t>(params.m),
                                         .columns = n,
                                         .row_bytes = n * 2,
                                         .box_rows = C::kPanel,
                                         .box_columns = kMarlinTileN,
                                         .element_bytes = 2}));
  SGL_RETURN_IF_ERROR(allow_shared_memory(kName, many_tokens_kernel<C>, sizeof(SharedMemory<C>)));
  return launch(kName, many_tokens_kernel<C>,
                {.grid = dim3(std::min(num_sms(), call.token_tiles * call.column_tiles)),
                 .block = dim3(C::kThreads),
                 .shared_bytes = sizeof(SharedMemory<C>),
                 .pdl = true},
                stream, call, maps);
}

// From a tile chosen at run time to its instantiation.
template <Format kFormat>
Status launch_token_tile(const MarlinGemmParams& params, int tile, Stream stream) {
  using Launch = Status(const MarlinGemmParams&, Stream);
  constexpr auto kLaunches = []<int... i>(std::integer_sequence<int, i...>) {
    struct {
      Launch* f16[kNumTokenTiles];
      Launch* bf16[kNumTokenTiles];
    } table = {{&launch_tiles<Config<__half, kFormat, kTokenTiles[i].tokens>>...},
               {&launch_tiles<Config<__nv_bfloat16, kFormat, kTokenTiles[i].tokens>>...}};
    return table;
  }(std::make_integer_sequence<int, kNumTokenTiles>());
  return (params.dtype == DType::kF16 ? kLaunches.f16 : kLaunches.bf16)[tile](params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET::many_tokens
