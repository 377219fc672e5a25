// Products of many tokens with packed weights on Hopper: wgmma with weights that are decoded in registers, whatever
// their format.
//
// Operands are swapped: a tile is 128 columns of the result by kTokens tokens, and each of the two warpgroups that
// multiply has 64 of the columns. Its weights are operand A: they go from shared memory to registers, are decoded
// there, each of them once for all tokens of the tile, and never return. While the tensor cores multiply one stage of
// K, the next one is decoded.
//
// Grid: a persistent block a multiprocessor. Tiles are taken in groups of some rows of tiles, column by column, so that
// what runs at a time shares its operands in the L2 cache. The producers run ahead into the next tile. Where there are
// few tiles, a cluster of blocks shares the K of each, and adds up the sums over its shared memory.
//
// What orders shared memory: a copy is asked for when all threads that multiply have arrived at the place's `empty`,
// each behind its own loads of the place and its warpgroup's wait_wgmma() for the instructions that read it; they read
// behind the place's `full`. A cluster's sums lie where the ring was: by then all copies have been waited for, and a
// barrier follows the last wait_wgmma(). No block ends before all of its cluster have read its sums.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
#include "kernels/device/pipeline_sm90.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/wgmma_registers_sm90.cuh"

namespace sgl_kernel::SGL_TARGET::many_tokens_mm {

inline constexpr int kWarpgroup = 128, kWarpgroups = 2;  // threads of one; those that multiply
inline constexpr int kWarpgroupColumns = 64;             // rows of the instruction
inline constexpr int kColumns = kWarpgroups * kWarpgroupColumns;
inline constexpr int kStepBytes = 32;                      // of a token, in an instruction
inline constexpr int kSteps = kSwizzleBytes / kStepBytes;  // of a stage
inline constexpr int kThreads = (1 + kWarpgroups) * kWarpgroup;
inline constexpr int kStartRegisters = 65536 / kThreads / 8 * 8;  // of a thread, at the launch
inline constexpr int kSharedBytes = 227 * 1024;                   // what a block can have
inline constexpr int kOtherBytes = 2048;                          // room for barriers and alignment
inline constexpr int kBoxAlignment = 128;                         // of boxes that are not swizzled

// Product: the format. It has
//   Operand, Sum              int8_t and int32_t, or __half and float
//   kTokens, kStages          of a tile; of the ring
//   kProducerRegisters, kConsumerRegisters    of a thread, from its start on
//   kFullArrivals             of the producers, at each stage
//   kStagesTogether           what splits of K are multiples of
//   Call, Maps                what its kernel is given; a Call is a TileCall
//   Packed, kPackedStages     what else is in shared memory for a stage or some, and how often
//   Barriers                  besides the ring's own, with their init()
//   produce()                 what the warpgroup of the producers does
//   Words, Decoder            what a lane reads of a stage; load() reads it and decode() makes operand A of it
//   Epilogue, TokenConstant   from two tokens' sums to a pair of results; what it needs of each token
struct TileCall {
  int n;
  int stages;  // of K
  int splits;  // of K: blocks of a cluster
  int token_tiles, column_tiles;
  int box_tokens;
};

// Tokens of a box of the result, of which each warpgroup has two on their way to memory.
constexpr int panel_of(int tokens) { return tokens % 64 == 0 ? 64 : 32; }
constexpr int panel_bytes(int tokens) { return panel_of(tokens) * kWarpgroupColumns * 2; }

// What is left for the ring.
constexpr int ring_bytes(int tokens, int constant_bytes) {
  return kSharedBytes - kOtherBytes - kWarpgroups * (2 * panel_bytes(tokens) + tokens * constant_bytes);
}

// Operand A of a stage.
using Weights = uint32_t[kSteps][4];

template <class P>
using Sums = typename P::Sum[P::kTokens / 2];

template <class P>
struct SharedMemory {
  alignas(kSwizzleAtomBytes) uint8_t tokens[P::kStages][P::kTokens * kSwizzleBytes];
  alignas(kSwizzleAtomBytes) typename P::Packed packed[P::kPackedStages];
  alignas(kSwizzleAtomBytes) uint8_t panels[kWarpgroups][2][panel_bytes(P::kTokens)];
  typename P::TokenConstant constants[kWarpgroups][P::kTokens];
  Barrier full[P::kStages], empty[P::kStages];
  typename P::Barriers barriers;
};

struct Tile {
  int token, column;  // of the tile's first element
};

template <class P>
__device__ __forceinline__ Tile find_tile(const TileCall& call, int index) {
  constexpr int kGroupRows = 1024 / P::kTokens;  // tiles of a group, one below the other
  const int group_size = kGroupRows * call.column_tiles;
  const int group = index / group_size;
  const int in_group = index - group * group_size;
  const int rows = min(kGroupRows, call.token_tiles - group * kGroupRows);
  const int column = in_group / rows;
  const int row = group * kGroupRows + in_group - column * rows;
  return {row * P::kTokens, column * kColumns};
}

// What a block does: some tiles, the first of which is `first`, and of each the stages [begin, end).
template <class P>
struct Share {
  int first, step, begin, end, rank;

  __device__ __forceinline__ explicit Share(const TileCall& call)
      : first(blockIdx.x / call.splits),
        step(gridDim.x / call.splits),
        begin(0),
        end(call.stages),
        rank(blockIdx.x - first * call.splits) {
    if (call.splits == 1) return;
    const int units = call.stages / P::kStagesTogether;
    begin = units * rank / call.splits * P::kStagesTogether;
    end = units * (rank + 1) / call.splits * P::kStagesTogether;
  }
};

// Four tiles of 8 x 8 numbers to shared memory, each transposed: lane i points at row i % 8 of tile i / 8 as it is
// stored, and gives the pair of rows 2 * (i % 4) of column i / 4 of each tile.
__device__ __forceinline__ void store_transposed(void* row, const uint32_t (&tiles)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(tiles[0]), "r"(tiles[1]), "r"(tiles[2]), "r"(tiles[3])
               : "memory");
}

// Rounds a lane's sums of 16 tokens, two columns of two n8 tiles of the tokens, and leaves them in a panel: rows of a
// warpgroup's columns, swizzled. `constants` are those of the 16 tokens.
template <class P>
__device__ __forceinline__ void stage_sums(uint8_t* panel, int first_token, const typename P::Sum (&sums)[8],
                                           const typename P::Epilogue& epilogue,
                                           const typename P::TokenConstant* constants) {
  constexpr int kRowBytes = kWarpgroupColumns * 2;
  static_assert(kRowBytes == kSwizzleBytes);
  const int warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
  // store_transposed(): the token and the chunk of 8 columns that this lane's address stands for.
  const int token = first_token + lane / 16 * 8 + lane % 8, chunk = (2 * warp + lane / 8 % 2) ^ (lane % 8);
  uint32_t words[4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    epilogue.round(constants + 8 * half + 2 * (lane % 4), reinterpret_cast<const typename P::Sum(&)[4]>(sums[4 * half]),
                   words[2 * half], words[2 * half + 1]);
  }
  store_transposed(panel + token * kRowBytes + chunk * 16, words);
}

// Sends off a warpgroup's sums, a panel of tokens at a time. `panels` counts those sent so far.
template <class P>
__device__ __forceinline__ void store_tile(SharedMemory<P>& shared, const CUtensorMap* result_map, int first_token,
                                           int first_column, int warpgroup, const typename P::Epilogue& epilogue,
                                           int& panels, Sums<P>& sums) {
  constexpr int kPanel = panel_of(P::kTokens);
  const bool is_first = threadIdx.x % kWarpgroup == 0;
#pragma unroll
  for (int panel = 0; panel < P::kTokens / kPanel; ++panel) {
    uint8_t* const staged = shared.panels[warpgroup][panels & 1];
    // The panel's last occupant must have been read.
    if (is_first) wait_for_store_reads<1>();
    named_barrier_sync(1 + warpgroup, kWarpgroup);
#pragma unroll
    for (int i = 0; i < kPanel; i += 16) {
      const int token = panel * kPanel + i;
      stage_sums<P>(staged, i, reinterpret_cast<const typename P::Sum(&)[8]>(sums[token / 2]), epilogue,
                    shared.constants[warpgroup] + token);
    }
    fence_shared_for_async_proxy();
    named_barrier_sync(1 + warpgroup, kWarpgroup);
    if (is_first) {
      store_matrix_box(result_map, staged, first_token + panel * kPanel, first_column);
      commit_stores();
    }
    ++panels;
  }
}

// Adds to a thread's sums what a block of the cluster has left at that place of its shared memory.
template <class Sum>
__device__ __forceinline__ void add_from_rank(const Sum* mine, uint32_t rank, Sum (&sums)[4]) {
  uint4 part;
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [remote];\n"
      "}\n"
      : "=r"(part.x), "=r"(part.y), "=r"(part.z), "=r"(part.w)
      : "r"(shared_address(mine)), "r"(rank)
      : "memory");
  const auto& parts = reinterpret_cast<const Sum(&)[4]>(part);
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] += parts[i];
}

// With splits: each block leaves its sums in its shared memory, in the place of the ring, and then adds up its share of
// the tokens over the cluster, in the order of K.
template <class P>
__device__ __forceinline__ void leave_sums(SharedMemory<P>& shared, const Sums<P>& sums) {
  constexpr int kAllConsumers = 1 + kWarpgroups;  // a named barrier
  static_assert(offsetof(SharedMemory<P>, panels) >= kWarpgroups * kWarpgroup * sizeof(sums));
  named_barrier_sync(kAllConsumers, kWarpgroups * kWarpgroup);  // nobody multiplies any more
  uint4* const parts = reinterpret_cast<uint4*>(&shared);
#pragma unroll
  for (int i = 0; i < P::kTokens / 8; ++i) {
    parts[i * kWarpgroups * kWarpgroup + threadIdx.x] = reinterpret_cast<const uint4&>(sums[4 * i]);
  }
}

template <class P>
__device__ __forceinline__ void store_share(const TileCall& call, SharedMemory<P>& shared,
                                            const CUtensorMap* result_map, const Tile& tile, int rank, int warpgroup,
                                            const typename P::Epilogue& epilogue) {
  using Sum = typename P::Sum;
  const int tokens = P::kTokens / call.splits;  // a multiple of 16, see split_fits()
  const int first_column = tile.column + warpgroup * kWarpgroupColumns;
  const Sum* const parts = reinterpret_cast<const Sum*>(&shared) + 4 * threadIdx.x;
  uint8_t* const staged = shared.panels[warpgroup][0];
  for (int token = 0; token < tokens; token += 16) {
    Sum sums[2][4] = {};
#pragma unroll 2
    for (int from = 0; from < call.splits; ++from) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        add_from_rank(parts + ((rank * tokens + token) / 8 + i) * (4 * kWarpgroups * kWarpgroup), from, sums[i]);
      }
    }
    stage_sums<P>(staged, token, reinterpret_cast<const Sum(&)[8]>(sums), epilogue,
                  shared.constants[warpgroup] + rank * tokens + token);
  }
  fence_shared_for_async_proxy();
  named_barrier_sync(1 + warpgroup, kWarpgroup);
  if (threadIdx.x % kWarpgroup == 0 && first_column < call.n) {
    store_matrix_box(result_map, staged, tile.token + rank * tokens, first_column);
    commit_stores();
  }
}

__device__ __forceinline__ void pin_weights(Weights& weights) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) pin_registers(weights[step]);
}

template <class P>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const typename P::Call& call, SharedMemory<P>& shared)
      : shared_(shared), decoder_(call, shared) {}

  // The sums of a tile's stages [begin, end). While a stage is multiplied the next one is decoded.
  __device__ __forceinline__ void multiply(int begin, int end, Sums<P>& sums) {
    Weights even, odd;
    decoder_.start(begin);
    decode(even);
    int left = end - begin;
    for (bool fresh = true; left > 1; left -= 2, fresh = false) {
      step(sums, even, odd, 1, fresh, true);
      step(sums, odd, even, 0, false, left > 2);
    }
    if (P::kStagesTogether % 2 != 0 && left == 1) step(sums, even, odd, 1, end - begin == 1, false);
    wait_wgmma<0>();
    pin_registers(sums);
    pin_weights(even);
    pin_weights(odd);
    release(previous_);
    previous_ = -1;
  }

 private:
  // The first stage.
  __device__ __forceinline__ void decode(Weights& weights) {
    typename P::Words words;
    shared_.full[at_.index].wait(at_.parity);
    decoder_.load(at_.index, 0, words);
    decoder_.decode(words, weights);
  }

  // Multiplies a stage, and decodes the next one if there is `more`. `next_odd` is 1 if that one's number is odd.
  __device__ __forceinline__ void step(Sums<P>& sums, Weights& weights, Weights& next, int next_odd, bool fresh,
                                       bool more) {
    pin_registers(sums);
    pin_weights(weights);
    open_wgmma();
    const uint64_t tokens = make_descriptor(shared_address(shared_.tokens[at_.index]), 0);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      wgmma_registers_transposed<typename P::Operand, P::kTokens>(
          sums, weights[i], tokens + descriptor_offset(i * kStepBytes), i == 0 ? !fresh : 1);
    }
    commit_wgmma();
    pin_registers(sums);
    const int multiplied = at_.index;
    at_.advance();
    typename P::Words words;
    if (more) {
      shared_.full[at_.index].wait(at_.parity);
      decoder_.load(at_.index, next_odd, words);
    }
    if (previous_ >= 0) {
      wait_wgmma<1>();
      pin_weights(next);  // the last stage's: free from here on
      release(previous_);
    }
    previous_ = multiplied;
    if (more) decoder_.decode(words, next);
  }

  // Every thread says that it has read the stage.
  __device__ __forceinline__ void release(int stage) { shared_.empty[stage].arrive(); }

  SharedMemory<P>& shared_;
  typename P::Decoder decoder_;
  RingPosition<P::kStages> at_;
  int previous_ = -1;  // a stage that is being multiplied, beside the last one
};

template <class P>
__global__ void __launch_bounds__(kThreads, 1) many_tokens_mm_kernel(const __grid_constant__ typename P::Call call,
                                                                     const __grid_constant__ typename P::Maps maps) {
  extern __shared__ __align__(kSwizzleAtomBytes) uint8_t dynamic_shared[];
  SharedMemory<P>& shared = *reinterpret_cast<SharedMemory<P>*>(dynamic_shared);
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&maps.tokens);
    prefetch_tensor_map(&maps.weights);
    prefetch_tensor_map(&maps.result);
    for (int stage = 0; stage < P::kStages; ++stage) {
      shared.full[stage].init(P::kFullArrivals);
      shared.empty[stage].init(kWarpgroups * kWarpgroup);
    }
    shared.barriers.init();
    fence_barrier_init();
  }
  __syncthreads();
  const Share<P> share(call);
  if (warpgroup == kWarpgroups) {
    give_back_registers_down_to<P::kProducerRegisters>();
    wait_for_predecessor();
    P::produce(call, maps, share, shared);
    if (call.splits > 1) {
      __syncwarp();
      cluster_sync();
      cluster_sync();
    }
  } else {
    take_registers_up_to<P::kConsumerRegisters>();
    wait_for_predecessor();
    const int tiles = call.token_tiles * call.column_tiles;
    Consumer<P> consumer(call, shared);
    int panels = 0;
    for (int index = share.first; index < tiles; index += share.step) {
      const Tile tile = find_tile<P>(call, index);
      const int first_column = tile.column + warpgroup * kWarpgroupColumns;
      typename P::Epilogue epilogue(call, tile.token, first_column);
      Sums<P> sums;
      consumer.multiply(share.begin, share.end, sums);
      if (index + share.step >= tiles) release_successors();
      epilogue.share(shared.constants[warpgroup]);
      if (call.splits > 1) {
        leave_sums<P>(shared, sums);
        cluster_sync();
        store_share<P>(call, shared, &maps.result, tile, share.rank, warpgroup, epilogue);
      } else if (first_column < call.n) {
        store_tile<P>(shared, &maps.result, tile.token, first_column, warpgroup, epilogue, panels, sums);
      }
    }
    if (threadIdx.x % kWarpgroup == 0) wait_for_store_reads<0>();
    if (call.splits > 1) cluster_sync();  // others may still read what this block has left for them
  }
}

inline int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// A tile, and a model of its time: with t tiles on p multiprocessors and s stages, ceil(t / p) * (s * stage_us +
// end_us); with K split over the blocks of a cluster s are a block's stages, and kSplitUs + tokens * blocks *
// kSplitTokenUs join.
struct TokenTile {
  int tokens;
  float stage_us, end_us;
};
inline constexpr float kSplitUs = 1.2f, kSplitTokenUs = 0.006f;

// A stage takes the time of one of gptq_marlin_gemm's, whose figures these are. Of these tiles' times, the ones that
// the model chooses are 0.5% above the least on average, 16% at most (QServe's and NVFP4's products on an H200,
// 2026-11-23; M from 16 to 8192, the N and K of Qwen3-VL-235B and DeepSeek-V3).
inline constexpr TokenTile kTokenTiles[] = {
    {32, 0.25f, 1.3f},  {64, 0.292f, 1.4f},  {96, 0.333f, 1.62f},  {128, 0.385f, 1.55f},
    {160, 0.43f, 1.8f}, {192, 0.49f, 2.52f}, {224, 0.566f, 2.42f}, {256, 0.638f, 2.2f},
};
inline constexpr int kNumTokenTiles = sizeof(kTokenTiles) / sizeof(kTokenTiles[0]);

struct TokenTileChoice {
  int tile;    // an index of kTokenTiles
  int splits;  // of K
};

// Whether the blocks of a cluster can share a tile out: each stores 16 tokens or a multiple, as many as its panels
// hold.
constexpr bool split_fits(int tokens, int splits) {
  return tokens % (16 * splits) == 0 && tokens / splits <= panel_of(tokens);
}

// What takes the least time. `units` are what K can be split into, each of them of stages_together stages.
inline TokenTileChoice choose_tile(int64_t m, int64_t n, int units, int stages_together) {
  TokenTileChoice best = {};
  float best_us = 0.0f;
  for (int i = kNumTokenTiles - 1; i >= 0; --i) {
    const TokenTile& tile = kTokenTiles[i];
    const int64_t count = int64_t{ceil_div(m, tile.tokens)} * ceil_div(n, kColumns);
    for (int splits : {1, 2, 3, 4}) {
      if (splits > 1 && (!split_fits(tile.tokens, splits) || splits > units)) continue;
      // Not all multiprocessors belong to a cluster of more than two.
      if (splits > 1 && count * splits > (splits > 2 ? num_sms() * 3 / 4 : num_sms())) continue;
      const float split_us = splits > 1 ? kSplitUs + kSplitTokenUs * static_cast<float>(tile.tokens * splits) : 0.0f;
      const float stages = static_cast<float>(ceil_div(units, splits) * stages_together);
      const float us =
          static_cast<float>(ceil_div(count, num_sms())) * (stages * tile.stage_us + tile.end_us) + split_us;
      if (best_us == 0.0f || us < best_us) {
        best = {i, splits};
        best_us = us;
      }
    }
  }
  return best;
}

// The map of the result, 16-bit, [m, n].
template <class P>
Status encode_result(const char* operator_name, CUtensorMap* map, void* result, int64_t m, int64_t n, int64_t stride,
                     int splits) {
  return encode_matrix_map(operator_name, map,
                           {.data = result,
                            .rows = static_cast<uint64_t>(m),
                            .columns = static_cast<uint64_t>(n),
                            .row_bytes = static_cast<uint64_t>(stride) * 2,
                            .box_rows = static_cast<uint32_t>(splits > 1 ? P::kTokens / splits : panel_of(P::kTokens)),
                            .box_columns = kWarpgroupColumns,
                            .element_bytes = 2});
}

template <class P>
TileCall make_tile_call(int64_t m, int64_t n, int stages, int splits) {
  return {.n = static_cast<int>(n),
          .stages = stages,
          .splits = splits,
          .token_tiles = ceil_div(m, P::kTokens),
          .column_tiles = ceil_div(n, kColumns),
          .box_tokens = static_cast<int>(std::min<int64_t>(m, P::kTokens))};
}

template <class P>
Status launch_product(const char* operator_name, const typename P::Call& call, const typename P::Maps& maps,
                      Stream stream) {
  static_assert(sizeof(SharedMemory<P>) <= kSharedBytes);
  // The block's pool is what it was launched with.
  static_assert(P::kProducerRegisters + kWarpgroups * P::kConsumerRegisters <= (1 + kWarpgroups) * kStartRegisters);
  const int tiles = call.token_tiles * call.column_tiles;
  SGL_RETURN_IF_ERROR(allow_shared_memory(operator_name, many_tokens_mm_kernel<P>, sizeof(SharedMemory<P>)));
  return launch(operator_name, many_tokens_mm_kernel<P>,
                {.grid = dim3(call.splits > 1 ? tiles * call.splits : std::min(num_sms(), tiles)),
                 .block = dim3(kThreads),
                 .shared_bytes = sizeof(SharedMemory<P>),
                 .pdl = true,
                 .cluster = call.splits},
                stream, call, maps);
}

}  // namespace sgl_kernel::SGL_TARGET::many_tokens_mm
