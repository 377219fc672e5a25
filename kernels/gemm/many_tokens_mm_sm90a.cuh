// Products of many tokens with packed weights on Hopper: wgmma with weights that are decoded in registers, whatever
// their format.
//
// Operands are swapped: a tile is 128 or 192 columns of the result by kTokens tokens, and each of the two or three
// warpgroups that multiply has 64 of the columns. Its weights are operand A: they go from shared memory to registers,
// are decoded there, each of them once for all tokens of the tile, and never return. A warp that has asked for a step
// of K decodes the weights of the next but one while the tensor cores multiply.
//
// Grid: a persistent block a multiprocessor. Tiles are taken in groups of some rows of tiles, column by column, so that
// what runs at a time shares its operands in the L2 cache. The producer, a warp, runs ahead into the next tile. Where
// there are few tiles, a cluster of blocks shares the K of each, and adds up the sums over its shared memory.
//
// What orders shared memory: a copy is asked for when all warps that multiply have arrived at the place's `empty`, each
// behind its own loads of the place and its warpgroup's wait_wgmma() for the instructions that read it; they read
// behind the place's `full`. A cluster's sums lie where the ring was: by then all copies have been waited for, and a
// barrier of the cluster follows the last wait_wgmma(). That barrier is relaxed: it hands no value on, and what it
// must come after, copies that have been waited for and instructions that have ended, is over in every sense.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "kernels/base/launch.h"
#include "kernels/device/cluster.cuh"
#include "kernels/device/pdl.cuh"
#include "kernels/device/pipeline_sm90.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/wgmma_registers_sm90.cuh"
#include "kernels/gemm/many_tokens_tiles_sm90a.h"

namespace sgl_kernel::SGL_TARGET::many_tokens_mm {

inline constexpr int kStepBytes = 32;                      // of a token, in an instruction
inline constexpr int kSteps = kSwizzleBytes / kStepBytes;  // of a stage
inline constexpr int kMostStages = 8;
inline constexpr int kSharedBytes = 227 * 1024;  // what a block can have
inline constexpr int kOtherBytes = 256;          // room for barriers
inline constexpr int kBoxAlignment = 128;        // of boxes that are not swizzled

// What a format's Product is built on; Operand is int8_t, __half or __nv_bfloat16.
template <class Operand_, int kWarpgroups_, int kTokens_>
struct ProductShape {
  using Operand = Operand_;
  using Sum = std::conditional_t<std::is_same_v<Operand, int8_t>, int32_t, float>;
  static constexpr int kWarpgroups = kWarpgroups_;  // that multiply
  static constexpr int kTokens = kTokens_;
  static constexpr int kColumns = kWarpgroups * kWarpgroupColumns;
  static constexpr int kStageK = kSwizzleBytes / sizeof(Operand);
  static constexpr int kMultiplying = kWarpgroups * kWarpgroup;  // threads
  static constexpr int kThreads = kWarpgroup + kMultiplying;
  // Of a thread, from its start on; together no more than a multiprocessor has.
  static constexpr int kProducerRegisters = kWarpgroups == 2 ? 40 : 32,
                       kConsumerRegisters = kWarpgroups == 2 ? 232 : 160;
  // Tokens of a box of the result, of which each warpgroup has two on their way to memory.
  static constexpr int kPanel = token_panel(kTokens);
  static constexpr int kPanelBytes = kPanel * kWarpgroupColumns * 2;

  // Stages that fit in the ring beside `other_bytes`, if each has so many bytes of packed weights.
  static constexpr int num_stages(int packed_bytes, int other_bytes) {
    const int left = kSharedBytes - kOtherBytes - kWarpgroups * 2 * kPanelBytes - other_bytes;
    return std::min(kMostStages, left / (kTokens * kSwizzleBytes + packed_bytes));
  }
};

// A Product is a ProductShape with
//   kStages                   of the ring
//   Packed, kPackedStages     what else is in shared memory for a stage or some, and how often
//   kStagesTogether           what K and its splits are multiples of
//   Extra                     more of shared memory, with init() by one thread
//   Call, Maps                what its kernel is given: a TileCall; the maps of tokens, weights, result and more
//   prefetch()                the maps of what is packed
//   Source                    of what is packed: the producer's next() stage, then load() by one of its lanes, bytes()
//                             of which are at the stage's barrier
//   kWays                     of decoding: template arguments 0 <= kWay < kWays
//   Words, Factors, Decoder   what a lane reads of a stage; what is carried from step to step; way() where there are
//                             several, start() of a tile, load<kWay>() and decode<kWay>(), which makes a step's operand
//                             A
//   Epilogue                  what a tile's sums lack: it is loaded before the product, share()d by the warpgroup
//                             behind it, and stage()s the sums of 16 tokens in a panel of shared memory
struct TileCall {
  int n;
  int stages;      // of K
  int splits;      // of K: blocks of a cluster
  int split_step;  // what split_begin() multiplies with
  int token_tiles, column_tiles;
  int box_tokens;
};

template <class P>
using Sums = typename P::Sum[P::kTokens / 2];

template <class P>
struct SharedMemory {
  alignas(kSwizzleAtomBytes) uint8_t panels[P::kWarpgroups][2][P::kPanelBytes];
  alignas(kSwizzleAtomBytes) uint8_t tokens[P::kStages][P::kTokens * kSwizzleBytes];
  typename P::Packed packed[P::kPackedStages];
  typename P::Extra extra;
  Barrier full[P::kStages], empty[P::kStages];
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
  return {row * P::kTokens, column * P::kColumns};
}

// What a block does: some tiles, the first of which is `first`, and of each the stages [begin, end).
template <class P>
struct Share {
  int first, step, begin, end, rank;
  Tile first_tile;

  __device__ __forceinline__ explicit Share(const TileCall& call)
      : first(blockIdx.x / call.splits),
        step(gridDim.x / call.splits),
        begin(0),
        end(call.stages),
        rank(blockIdx.x - first * call.splits),
        first_tile(many_tokens_mm::find_tile<P>(call, first)) {
    if (call.splits == 1) return;
    const int units = call.stages / P::kStagesTogether;
    begin = units * rank / call.splits * P::kStagesTogether;
    end = units * (rank + 1) / call.splits * P::kStagesTogether;
  }

  __device__ __forceinline__ Tile find_tile(const TileCall& call, int index) const {
    return index == first ? first_tile : many_tokens_mm::find_tile<P>(call, index);
  }
};

// What the producer does: the whole warp counts, so that all numbers are in its uniform registers, and one of its lanes
// asks the copy engine. That answers in order: were stages not asked for one by one, each with all that it has, the
// first would wait for later ones' tokens. What is packed comes first, as it comes from memory.
template <class P>
__device__ __forceinline__ void produce(const typename P::Call& call, const typename P::Maps& maps,
                                        const Share<P>& share, SharedMemory<P>& shared) {
  const int tiles = call.token_tiles * call.column_tiles;
  typename P::Source source(call, maps, share, shared);
  wait_for_predecessor();
  RingPosition<P::kStages> at;
  for (int index = share.first; index < tiles; index += share.step) {
    const Tile tile = share.find_tile(call, index);
    for (int stage = share.begin; stage < share.end; ++stage) {
      Barrier& full = shared.full[at.index];
      shared.empty[at.index].wait(at.parity ^ 1);
      source.next(stage);
      if (elect_one()) {
        full.arrive_and_expect(call.box_tokens * kSwizzleBytes + source.bytes());
        source.load(at.index, full, tile, stage);
        load_matrix_box(shared.tokens[at.index], &maps.tokens, &full, tile.token, stage * P::kStageK);
      }
      at.advance();
    }
  }
}

// Four tiles of 8 x 8 numbers to shared memory, each transposed: lane i points at row i % 8 of tile i / 8 as it is
// stored, and gives the pair of rows 2 * (i % 4) of column i / 4 of each tile.
__device__ __forceinline__ void store_transposed(void* row, const uint32_t (&tiles)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(tiles[0]), "r"(tiles[1]), "r"(tiles[2]), "r"(tiles[3])
               : "memory");
}

// For an Epilogue whose warps have 16 columns each: a lane's results, pairs of tokens of its two columns, of the 16
// tokens from row first_row of a panel on. A panel has rows of a warpgroup's columns, swizzled.
__device__ __forceinline__ void stage_pairs(uint8_t* panel, int first_row, const uint32_t (&pairs)[4]) {
  static_assert(kWarpgroupColumns * 2 == kSwizzleBytes);
  const int warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
  // store_transposed(): the row and the chunk of 8 columns that this lane's address stands for.
  const int row = first_row + lane / 16 * 8 + lane % 8, chunk = (2 * warp + lane / 8 % 2) ^ (lane % 8);
  store_transposed(panel + row * kSwizzleBytes + chunk * 16, pairs);
}

// Sends off a warpgroup's sums, a panel of tokens at a time. `panels` counts those sent so far.
template <class P>
__device__ __forceinline__ void store_tile(SharedMemory<P>& shared, const CUtensorMap* result_map, int first_token,
                                           int first_column, int warpgroup, const typename P::Epilogue& epilogue,
                                           int& panels, Sums<P>& sums) {
  const bool is_first = threadIdx.x % kWarpgroup == 0;
#pragma unroll
  for (int panel = 0; panel < P::kTokens / P::kPanel; ++panel) {
    uint8_t* const staged = shared.panels[warpgroup][panels & 1];
    // The panel's last occupant must have been read.
    if (is_first) wait_for_store_reads<1>();
    named_barrier_sync(1 + warpgroup, kWarpgroup);
#pragma unroll
    for (int i = 0; i < P::kPanel; i += 16) {
      const int token = panel * P::kPanel + i;
      epilogue.stage(staged, i, token, reinterpret_cast<const typename P::Sum(&)[8]>(sums[token / 2]));
    }
    fence_shared_for_async_proxy();
    named_barrier_sync(1 + warpgroup, kWarpgroup);
    if (is_first) {
      store_matrix_box(result_map, staged, first_token + panel * P::kPanel, first_column);
      commit_stores();
    }
    ++panels;
  }
}

// With splits: each block of the cluster has some 16s of a tile's tokens to add up, from this one on. A division by the
// number of blocks is a product with a rounded fraction.
inline constexpr int kSplitStepBits = 16;
__device__ __forceinline__ int split_begin(const TileCall& call, int rank) {
  return rank * call.split_step >> kSplitStepBits;
}
// The most that a block has.
__device__ __forceinline__ int split_most(const TileCall& call) {
  return (call.split_step + (1 << kSplitStepBits) - 1) >> kSplitStepBits;
}

// Hands each block the sums of its tokens into its shared memory, in the place of the ring. A block begins with the
// quarter of the tokens that has its own: were all to begin with the first, its owner would have to take them at once.
template <class P>
__device__ __forceinline__ void hand_out_sums(const TileCall& call, SharedMemory<P>& shared, const Sums<P>& sums,
                                              int rank) {
  constexpr int kEightBytes = P::kMultiplying * 16;  // of all threads' sums of eight tokens
  constexpr int kSixteens = P::kTokens / 16, kQuarters = 4;
  static_assert(sizeof(shared.tokens) + sizeof(shared.packed) >=
                std::min<size_t>(kSplitBytes, 2 * P::kMultiplying * sizeof(sums)));
  const uint32_t own = shared_address(shared.tokens) + rank * split_most(call) * 2 * kEightBytes + threadIdx.x * 16;
  const int first_quarter = split_begin(call, rank) * kQuarters / kSixteens;
  int block = 0, end = 0;
  uint32_t to = 0;
#pragma unroll 1
  for (int turn = 0; turn < kQuarters; ++turn) {
    const int quarter = (first_quarter + turn) % kQuarters;
#pragma unroll
    for (int i = 0; i < kSixteens; ++i) {
      if (i * kQuarters / kSixteens != quarter) continue;
      const bool begins = i == 0 || (i - 1) * kQuarters / kSixteens != i * kQuarters / kSixteens;
      if (begins || i == end) {
        block = begins ? ((i + 1) * call.splits - 1) / kSixteens : block + 1;
        end = split_begin(call, block + 1);
        to = address_in_block(own + (i - split_begin(call, block)) * 2 * kEightBytes, block);
      }
      store_to_cluster(to, sums[8 * i], sums[8 * i + 1], sums[8 * i + 2], sums[8 * i + 3]);
      store_to_cluster(to + kEightBytes, sums[8 * i + 4], sums[8 * i + 5], sums[8 * i + 6], sums[8 * i + 7]);
      to += 2 * kEightBytes;
    }
  }
}

// Adds them up in the order of K.
template <class P>
__device__ __forceinline__ void store_share(const TileCall& call, SharedMemory<P>& shared,
                                            const CUtensorMap* result_map, const Tile& tile, int rank, int warpgroup,
                                            const typename P::Epilogue& epilogue) {
  using Sum = typename P::Sum;
  const int first_column = tile.column + warpgroup * kWarpgroupColumns;
  const int begin = split_begin(call, rank) * 16, end = split_begin(call, rank + 1) * 16, most = split_most(call);
  const uint4* parts = reinterpret_cast<const uint4*>(shared.tokens) + threadIdx.x;
  uint8_t* const staged = shared.panels[warpgroup][0];  // both panels, see split_fits()
#pragma unroll 2
  for (int token = begin; token < end; token += 16) {
    Sum sums[8] = {};
#pragma unroll
    for (int from = 0; from < kMostSplits; ++from) {
      if (from == call.splits) break;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4 part = parts[(from * most * 2 + i) * P::kMultiplying];
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[4 * i + j] += reinterpret_cast<const Sum(&)[4]>(part)[j];
      }
    }
    epilogue.stage(staged, token - begin, token, sums);
    parts += 2 * P::kMultiplying;
  }
  fence_shared_for_async_proxy();
  named_barrier_sync(1 + warpgroup, kWarpgroup);
  if (threadIdx.x % kWarpgroup == 0 && first_column < call.n) {
    for (int token = begin; token < end; token += 16) {
      store_matrix_box(result_map, staged + (token - begin) * kSwizzleBytes, tile.token + token, first_column);
    }
    commit_stores();
  }
}

template <class P>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const typename P::Call& call, SharedMemory<P>& shared)
      : shared_(shared), decoder_(call, shared) {}

  // The sums of a tile's stages [begin, end).
  template <int kWay = 0>
  __device__ __forceinline__ void multiply(int begin, int end, Sums<P>& sums) {
    if constexpr (kWay + 1 < P::kWays) {
      if (decoder_.way() != kWay) return multiply<kWay + 1>(begin, end, sums);
    }
    Progress progress;
    decoder_.start(begin);
    load<kWay>(progress, 0);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) decode<kWay>(progress, i);
    constexpr int kTogether = P::kStagesTogether;
    int stage = begin;
    for (; stage < end - kTogether; stage += kTogether) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        multiply_stage<kWay, false>(progress, (i + 1) % kTogether, i == 0 && stage == begin, sums);
      }
    }
#pragma unroll
    for (int i = 0; i < kTogether - 1; ++i) {
      multiply_stage<kWay, false>(progress, i + 1, i == 0 && stage == begin, sums);
    }
    multiply_stage<kWay, true>(progress, 0, kTogether == 1 && stage == begin, sums);
    wait_wgmma<0>();
    pin_registers(sums);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) pin_registers(progress.weights[i]);
    release(previous_);
    previous_ = -1;
  }

 private:
  // So many steps before they are multiplied are weights decoded.
  static constexpr int kAhead = 2;

  struct Progress {
    typename P::Words words;  // of the stage that is being decoded
    typename P::Factors factors;
    uint32_t weights[kSteps][4];  // operand A, a ring of steps
  };

  // What a lane needs of the next stage, which is number `which` of those together.
  template <int kWay>
  __device__ __forceinline__ void load(Progress& progress, int which) {
    shared_.full[loaded_.index].wait(loaded_.parity);
    decoder_.template load<kWay>(loaded_.index, which, progress.words);
    loaded_.advance();
  }

  template <int kWay>
  __device__ __forceinline__ void decode(Progress& progress, int step) {
    decoder_.template decode<kWay>(progress.words, step, progress.factors, progress.weights[step]);
  }

  // A step's instruction starts behind the last one's, and until then the warp may have to wait: so each is followed by
  // a step's decoding.
  template <int kWay, bool kIsLast>
  __device__ __forceinline__ void multiply_stage(Progress& progress, int next_which, bool fresh, Sums<P>& sums) {
    const uint64_t tokens = make_descriptor(shared_address(shared_.tokens[multiplied_.index]), 0);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      pin_registers(sums);
      pin_registers(progress.weights[i]);
      open_wgmma();
      wgmma_registers_transposed<typename P::Operand, P::kTokens>(
          sums, progress.weights[i], tokens + descriptor_offset(i * kStepBytes), i == 0 ? !fresh : 1);
      commit_wgmma();
      pin_registers(sums);
      constexpr int kFree = kSteps - kAhead;
      wait_wgmma<kFree>();  // the weights that are decoded next take a finished step's place
      if (i == kFree - 1) release(previous_);
      const int next = (i + kAhead) % kSteps;
      if (!kIsLast || next > i) {
        pin_registers(progress.weights[next]);
        decode<kWay>(progress, next);
      }
      if (!kIsLast && next == kSteps - 1) load<kWay>(progress, next_which);
    }
    previous_ = multiplied_.index;
    multiplied_.advance();
  }

  // Every warp says that it has read the stage, if there is one.
  __device__ __forceinline__ void release(int stage) {
    __syncwarp();
    shared_.empty[max(stage, 0)].arrive_if(stage >= 0 && threadIdx.x % 32 == 0);
  }

  SharedMemory<P>& shared_;
  typename P::Decoder decoder_;
  RingPosition<P::kStages> loaded_, multiplied_;  // the next ones to be
  int previous_ = -1;                             // a stage that is being multiplied, beside the last one
};

template <class P>
__global__ void __launch_bounds__(P::kThreads, 1) many_tokens_mm_kernel(const __grid_constant__ typename P::Call call,
                                                                        const __grid_constant__ typename P::Maps maps) {
  extern __shared__ __align__(kSwizzleAtomBytes) uint8_t dynamic_shared[];
  SharedMemory<P>& shared = *reinterpret_cast<SharedMemory<P>*>(dynamic_shared);
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&maps.tokens);
    prefetch_tensor_map(&maps.result);
    P::prefetch(call, maps);
    for (int stage = 0; stage < P::kStages; ++stage) {
      shared.full[stage].init(1);
      shared.empty[stage].init(P::kMultiplying / 32);
    }
    shared.extra.init();
    fence_barrier_init();
  }
  __syncthreads();
  const Share<P> share(call);
  if (warpgroup == P::kWarpgroups) {
    give_back_registers_down_to<P::kProducerRegisters>();
    if (__shfl_sync(~0u, threadIdx.x % kWarpgroup / 32, 0) == 0) produce<P>(call, maps, share, shared);
    if (call.splits > 1) {
      __syncwarp();
      cluster_sync_relaxed();
      cluster_sync();
    }
  } else {
    take_registers_up_to<P::kConsumerRegisters>();
    wait_for_predecessor();
    const int tiles = call.token_tiles * call.column_tiles;
    Consumer<P> consumer(call, shared);
    int panels = 0;
    for (int index = share.first; index < tiles; index += share.step) {
      const Tile tile = share.find_tile(call, index);
      const int first_column = tile.column + warpgroup * kWarpgroupColumns;
      typename P::Epilogue epilogue(call, shared, tile.token, first_column);
      Sums<P> sums;
      consumer.multiply(share.begin, share.end, sums);
      if (index + share.step >= tiles) release_successors();
      epilogue.share();
      if (call.splits > 1) {
        cluster_sync_relaxed();  // nobody in the cluster multiplies any more
        hand_out_sums<P>(call, shared, sums, share.rank);
        cluster_sync();
        store_share<P>(call, shared, &maps.result, tile, share.rank, warpgroup, epilogue);
      } else if (first_column < call.n) {
        store_tile<P>(shared, &maps.result, tile.token, first_column, warpgroup, epilogue, panels, sums);
      }
    }
    if (threadIdx.x % kWarpgroup == 0) wait_for_store_reads<0>();
  }
}

// The map of the tokens, [m, k], with stride_bytes from row to row.
template <class P>
Status encode_tokens(const char* operator_name, CUtensorMap* map, const void* tokens, int64_t m, int64_t k,
                     int64_t stride_bytes) {
  return encode_matrix_map(operator_name, map,
                           {.data = const_cast<void*>(tokens),
                            .rows = static_cast<uint64_t>(m),
                            .columns = static_cast<uint64_t>(k),
                            .row_bytes = static_cast<uint64_t>(stride_bytes),
                            .box_rows = static_cast<uint32_t>(std::min<int64_t>(m, P::kTokens)),
                            .box_columns = P::kStageK,
                            .element_bytes = sizeof(typename P::Operand)});
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
                            .box_rows = static_cast<uint32_t>(splits > 1 ? 16 : P::kPanel),
                            .box_columns = kWarpgroupColumns,
                            .element_bytes = 2});
}

template <class P>
TileCall make_tile_call(int64_t m, int64_t n, int stages, int splits) {
  return {.n = static_cast<int>(n),
          .stages = stages,
          .splits = splits,
          .split_step = ceil_div(int64_t{P::kTokens / 16} << kSplitStepBits, splits),
          .token_tiles = ceil_div(m, P::kTokens),
          .column_tiles = ceil_div(n, P::kColumns),
          .box_tokens = static_cast<int>(std::min<int64_t>(m, P::kTokens))};
}

template <class P>
Status launch_product(const char* operator_name, const typename P::Call& call, const typename P::Maps& maps,
                      Stream stream) {
  static_assert(sizeof(SharedMemory<P>) <= kSharedBytes);
  const int tiles = call.token_tiles * call.column_tiles;
  SGL_RETURN_IF_ERROR(allow_shared_memory(operator_name, many_tokens_mm_kernel<P>, sizeof(SharedMemory<P>)));
  return launch(operator_name, many_tokens_mm_kernel<P>,
                {.grid = dim3(call.splits > 1 ? tiles * call.splits : std::min(num_sms(), tiles)),
                 .block = dim3(P::kThreads),
                 .shared_bytes = sizeof(SharedMemory<P>),
                 .pdl = true,
                 .cluster = call.splits},
                stream, call, maps);
}

// From a tile chosen at run time to its instantiation: launch.operator()<tile>().
template <int kTiles, class Launch>
Status launch_tile(int tile, Launch launch) {
  return [&]<int... i>(std::integer_sequence<int, i...>) {
    Status status;
    ((tile == i ? static_cast<void>(status = launch.template operator()<i>()) : void()), ...);
    return status;
  }(std::make_integer_sequence<int, kTiles>());
}

}  // namespace sgl_kernel::SGL_TARGET::many_tokens_mm
