// gptq_marlin_gemm of many tokens on Hopper: wgmma with weights that are decoded in registers.
//
// Operands are swapped: a tile is 128 or 192 columns of the result by kTokens tokens, and each of the two or three
// warpgroups that multiply has 64 of the columns. A word of Marlin's layout is what a lane holds of operand A of
// wgmma.m64nNk16, so the weights go from shared memory to registers, are decoded there, each of them once for all
// tokens of the tile, and never return. A warp that has asked for a step of 16 along K decodes the weights of the next
// but one while the tensor cores multiply.
//
// The scales of several groups join the weights before the product, rounded to a's dtype; one group's join the sums.
//
// Grid: a persistent block a multiprocessor. Tiles are taken in groups of some rows of tiles, column by column, so that
// what runs at a time shares its operands in the L2 cache. Producer threads run ahead into the next tile. Where there
// are few tiles, a cluster of blocks shares the K of each, and adds up the sums over its shared memory.
//
// Bound by power and the tensor cores from some 1000 tokens on (a stage of a tile of 256 tokens takes 1.02 of the
// clocks of its wgmma), by the last wave of tiles below, and where tiles have fewer than 128 tokens by the decoding:
// 120 instructions a warp and stage. Measured on an H200, 2026-11-23, random operands, bf16, groups of 128, in µs;
// torch 2.11's product with a bf16 weight, of another run that day:
//   N x K            9216 x 4096   4096 x 8192   3072 x 4096   2112 x 7168   24576 x 1536
//   M = 64
//     uint4b8        16.1          17.7          9.4           11.9          12.3
//     uint8b128      18.1          17.2          10.1          12.3          14.4
//     torch.mm       21.8          23.4          9.6           13.4          21.8
//   M = 256
//     uint4b8        33.0          26.9          15.3          17.0          30.5
//     uint8b128      36.0          30.3          16.6          18.9          33.0
//     torch.mm       32.4          30.7          15.3          17.5          29.5
//   M = 1024
//     uint4b8        104.6         87.4          36.1          46.4          103.5
//     uint8b128      111.2         88.0          39.1          50.4          106.3
//     torch.mm       105.2         85.3          36.3          40.8          108.7
#pragma once

#include <algorithm>
#include <utility>

#include "kernels/device/pdl.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/wgmma_registers_sm90.cuh"
#include "kernels/gemm/marlin_gemm_many_tokens_weights_sm90a.cuh"
#include "kernels/gemm/marlin_gemm_sm90a.h"
#include "kernels/gemm/marlin_layout.h"

namespace sgl_kernel::SGL_TARGET::many_tokens {

struct Maps {
  CUtensorMap tokens, weights, scales, zeros, result;
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
  return {row * C::kTokens, column * C::kColumns};
}

// What a block does: some tiles, the first of which is `first`, and of each the stages [begin, end).
struct Share {
  int first, step, begin, end, rank;

  __device__ __forceinline__ explicit Share(const Call& call)
      : first(blockIdx.x / call.splits),
        step(gridDim.x / call.splits),
        begin(0),
        end(call.stages),
        rank(blockIdx.x - first * call.splits) {
    if (call.splits == 1) return;
    begin = call.stages * rank / call.splits;
    end = call.stages * (rank + 1) / call.splits;
  }
};

// The producers: a thread for each of the tokens, the weights, and the scales and zero points. Asking the copy engine
// for a box takes a thread so long that one for all would not keep up.
enum class Producer { kTokens, kWeights, kGroups };

template <class C, Producer kProducer>
__device__ __forceinline__ void produce(const Call& call, const Maps& maps, const Share& share,
                                        SharedMemory<C>& shared) {
  const int tiles = call.token_tiles * call.column_tiles;
  const int bytes =
      kProducer == Producer::kTokens ? call.box_tokens * kSwizzleBytes
      : kProducer == Producer::kWeights
          ? C::kWeightBytes
          : call.group_rows * ((call.has_scales ? C::kScaleRowBytes : 0) + (call.has_zeros ? C::kZeroRowBytes : 0));
  RingPosition<C::kStages> at;
  for (int index = share.first; index < tiles; index += share.step) {
    const Tile tile = find_tile<C>(call, index);
    int row = share.begin / call.stages_per_row * call.group_rows, stages_of_row = share.begin % call.stages_per_row;
    for (int stage = share.begin; stage < share.end; ++stage) {
      Barrier* const full = &shared.full[at.index];
      shared.empty[at.index].wait(at.parity ^ 1);
      full->arrive_and_expect(bytes);
      if constexpr (kProducer == Producer::kTokens) {
        load_matrix_box(shared.tokens[at.index], &maps.tokens, full, tile.token, stage * kStageK);
      } else if constexpr (kProducer == Producer::kWeights) {
        // A box of 64 columns for each warpgroup.
        const int column = tile.column / kMarlinTileN * (C::kTileBytes / kWeightElement);
#pragma unroll
        for (int i = 0; i < C::kWarpgroups; ++i) {
          load_matrix_box(shared.weights[at.index] + i * kSteps * C::kTileBytes, &maps.weights, full, stage * kSteps,
                          column + i * (C::kTileBytes / kWeightElement));
        }
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

template <class C>
using Sums = float[C::kTokens / 2];

// Rounds a lane's sums of 16 tokens, two columns of two n8 tiles of the tokens, and leaves them in a panel: rows of a
// warpgroup's columns, swizzled. Lanes with neighbouring columns, four apart, swap halves, so that each has two columns
// of one token.
template <class C>
__device__ __forceinline__ void stage_sums(uint8_t* panel, int first_token, const float (&sums)[8],
                                           const float (&scales)[2]) {
  constexpr int kRowBytes = kMarlinTileN * 2;
  static_assert(kRowBytes == kSwizzleBytes);
  const Columns<C> columns;
  const int lane = threadIdx.x % 32, odd = lane / 4 % 2;
  // Of words {first column's pair of tokens, second column's}: what the other lane stores, and what this one does.
  const uint32_t give = odd == 0 ? 0x7632 : columns.swapped ? 0x1054 : 0x5410;
  const uint32_t take_low = odd == 0 ? 0x5410 : 0x3254, take_high = odd == 0 ? 0x7610 : 0x3276;
  const int token = first_token + lane % 4 * 2 + odd, place = lane / 8 * 4;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    uint32_t words[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* const pair = sums + 4 * tile + 2 * i;
      words[i] = bit_cast<uint32_t>(mixed_mm::to_pair<typename C::T>(pair[0] * scales[i], pair[1] * scales[i]));
    }
    const uint32_t taken = __shfl_xor_sync(~0u, __byte_perm(words[0], words[1], give), 4);
    uint8_t* const row = panel + (token + 8 * tile) * kRowBytes + place;
    // The halves of `taken` are of the lower and of the upper 8 columns of the block.
    const uint32_t lower = __byte_perm(columns.swapped ? words[1] : words[0], taken, take_low);
    const uint32_t upper = __byte_perm(columns.swapped ? words[0] : words[1], taken, take_high);
    const int chunk = 2 * columns.block;
    *reinterpret_cast<uint32_t*>(row + ((chunk ^ token % 8) * 16)) = lower;
    *reinterpret_cast<uint32_t*>(row + (((chunk + 1) ^ token % 8) * 16)) = upper;
  }
}

// Sends off a warpgroup's sums, a panel of tokens at a time. `panels` counts those sent so far.
template <class C>
__device__ __forceinline__ void store_tile(SharedMemory<C>& shared, const CUtensorMap* result_map, int first_token,
                                           int first_column, int warpgroup, const float (&scales)[2], int& panels,
                                           Sums<C>& sums) {
  const bool is_first = threadIdx.x % kWarpgroup == 0;
#pragma unroll
  for (int panel = 0; panel < C::kTokens / C::kPanel; ++panel) {
    uint8_t* const staged = shared.panels[warpgroup][panels & 1];
    // The panel's last occupant must have been read.
    if (is_first) wait_for_store_reads<1>();
    named_barrier_sync(1 + warpgroup, kWarpgroup);
#pragma unroll
    for (int token = 0; token < C::kPanel; token += 16) {
      stage_sums<C>(staged, token, reinterpret_cast<const float (&)[8]>(sums[(panel * C::kPanel + token) / 2]), scales);
    }
    fence_shared_for_async_proxy();
    named_barrier_sync(1 + warpgroup, kWarpgroup);
    if (is_first) {
      store_matrix_box(result_map, staged, first_token + panel * C::kPanel, first_column);
      commit_stores();
    }
    ++panels;
  }
}

// What a block of the cluster has left at that place of its shared memory.
__device__ __forceinline__ float4 load_from_rank(const float4* mine, uint32_t rank) {
  float4 part;
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n"
      "}\n"
      : "=f"(part.x), "=f"(part.y), "=f"(part.z), "=f"(part.w)
      : "r"(shared_address(mine)), "r"(rank)
      : "memory");
  return part;
}

// With splits: each block leaves its sums in its shared memory, in the place of the ring, and then adds up its share of
// the tokens over the cluster, in the order of K.
template <class C>
__device__ __forceinline__ void leave_sums(SharedMemory<C>& shared, const Sums<C>& sums) {
  constexpr int kThreads = C::kWarpgroups * kWarpgroup, kAllConsumers = 1 + C::kWarpgroups;  // a named barrier
  static_assert(offsetof(SharedMemory<C>, panels) >= kThreads * sizeof(sums));
  named_barrier_sync(kAllConsumers, kThreads);  // nobody multiplies any more
  float4* const parts = reinterpret_cast<float4*>(shared.tokens);
#pragma unroll
  for (int i = 0; i < C::kTokens / 8; ++i) {
    parts[i * kThreads + threadIdx.x] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
  }
}

// Each block of the cluster has some 16s of a tile's tokens.
template <class C>
__device__ __forceinline__ int first_chunk(const Call& call, int rank) {
  return C::kTokens / 16 * rank / call.splits;
}

template <class C>
__device__ __forceinline__ void store_share(const Call& call, SharedMemory<C>& shared, const CUtensorMap* result_map,
                                            const Tile& tile, int rank, int warpgroup, const float (&scales)[2]) {
  constexpr int kThreads = C::kWarpgroups * kWarpgroup, kChunk = 16;  // tokens
  const int first_column = tile.column + warpgroup * kMarlinTileN;
  const float4* const parts = reinterpret_cast<const float4*>(shared.tokens) + threadIdx.x;
  const int begin = first_chunk<C>(call, rank) * kChunk, end = first_chunk<C>(call, rank + 1) * kChunk;
  uint8_t* const staged = shared.panels[warpgroup][0];  // both panels, see split_fits()
  for (int token = begin; token < end; token += kChunk) {
    float4 tiles[kMostSplits][2];  // of eight tokens each; all asked for before the first is waited for
#pragma unroll
    for (int from = 0; from < kMostSplits; ++from) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        tiles[from][i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (from < call.splits) tiles[from][i] = load_from_rank(parts + (token / 8 + i) * kThreads, from);
      }
    }
    float sums[2][4] = {};
#pragma unroll
    for (int from = 0; from < kMostSplits; ++from) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sums[i][0] += tiles[from][i].x;
        sums[i][1] += tiles[from][i].y;
        sums[i][2] += tiles[from][i].z;
        sums[i][3] += tiles[from][i].w;
      }
    }
    stage_sums<C>(staged, token - begin, reinterpret_cast<const float (&)[8]>(sums), scales);
  }
  fence_shared_for_async_proxy();
  named_barrier_sync(1 + warpgroup, kWarpgroup);
  if (threadIdx.x % kWarpgroup == 0 && first_column < call.n) {
    for (int token = begin; token < end; token += kChunk) {
      store_matrix_box(result_map, staged + (token - begin) * kSwizzleBytes, tile.token + token, first_column);
    }
    commit_stores();
  }
}

// What is left to multiply a lane's two columns by.
template <class C>
__device__ __forceinline__ void load_scales(const Call& call, int first_column, float (&scales)[2]) {
  using T = typename C::T;
  const Columns<C> columns;
  const float factor = mixed_mm::result_factor(static_cast<const T*>(call.global_scale), call.factor);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    scales[r] = factor;
    if (call.column_scales != nullptr && first_column < call.n) {
      scales[r] *= static_cast<float>(
          static_cast<const T*>(call.column_scales)[first_column + marlin_scale_place(columns.column(r), false)]);
    }
  }
}

template <class C>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const Call& call, SharedMemory<C>& shared)
      : shared_(shared), decoder_(call, shared) {}

  // The sums of a tile's next num_stages stages.
  __device__ __forceinline__ void multiply(int num_stages, Sums<C>& sums) {
    if constexpr (C::kFormat == Format::kE2M1) {
      multiply_stages<false, false>(num_stages, sums);
    } else if (decoder_.one_group()) {
      choose_zeros<true>(num_stages, sums);
    } else {
      choose_zeros<false>(num_stages, sums);
    }
  }

 private:
  template <bool kOneGroup>
  __device__ __forceinline__ void choose_zeros(int num_stages, Sums<C>& sums) {
    if constexpr (C::kIsInteger) {
      if (decoder_.has_zeros()) return multiply_stages<kOneGroup, true>(num_stages, sums);
    }
    multiply_stages<kOneGroup, false>(num_stages, sums);
  }

  template <bool kOneGroup, bool kZeros>
  __device__ __forceinline__ void multiply_stages(int num_stages, Sums<C>& sums) {
    Progress<kOneGroup, kZeros> progress;
    load(progress);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) decode(progress, i);
    for (int stage = 0; stage < num_stages - 1; ++stage) multiply_stage<false>(progress, stage == 0, sums);
    multiply_stage<true>(progress, num_stages == 1, sums);
    wait_wgmma<0>();
    pin_registers(sums);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) pin_registers(progress.weights[i]);
    release(previous_);
    previous_ = -1;
  }

  // So many steps before they are multiplied are weights decoded.
  static constexpr int kAhead = 2;

  template <bool kOneGroup_, bool kZeros_>
  struct Progress {
    static constexpr bool kOneGroup = kOneGroup_, kZeros = kZeros_;
    Packed<C> packed;  // of the stage that is being decoded
    typename Decoder<C>::Factors factors;
    uint32_t weights[kSteps][4];  // operand A, a ring of steps
  };

  // What a lane needs of the next stage.
  template <class Progress>
  __device__ __forceinline__ void load(Progress& progress) {
    shared_.full[loaded_.index].wait(loaded_.parity);
    decoder_.template load<Progress::kOneGroup, Progress::kZeros>(loaded_.index, progress.packed);
    loaded_.advance();
  }

  template <class Progress>
  __device__ __forceinline__ void decode(Progress& progress, int step) {
    decoder_.template decode<Progress::kOneGroup, Progress::kZeros>(progress.packed, step, progress.factors,
                                                                    progress.weights[step]);
  }

  // A step's instruction starts behind the last one's, and until then the warp may have to wait: so each is followed by
  // a step's decoding.
  template <bool kIsLast, class Progress>
  __device__ __forceinline__ void multiply_stage(Progress& progress, bool fresh, Sums<C>& sums) {
    const uint64_t tokens = make_descriptor(shared_address(shared_.tokens[multiplied_.index]), 0);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      pin_registers(sums);
      pin_registers(progress.weights[i]);
      open_wgmma();
      wgmma_registers_transposed<typename C::T, C::kTokens>(
          sums, progress.weights[i], tokens + descriptor_offset(i * kMarlinTileK * 2), i == 0 ? !fresh : 1);
      commit_wgmma();
      pin_registers(sums);
      constexpr int kFree = kSteps - kAhead;
      wait_wgmma<kFree>();  // the weights that are decoded next take a finished step's place
      if (i == kFree - 1) release(previous_);
      const int next = (i + kAhead) % kSteps;
      if (!kIsLast || next > i) {
        pin_registers(progress.weights[next]);
        decode(progress, next);
      }
      if (!kIsLast && next == kSteps - 1) load(progress);
    }
    previous_ = multiplied_.index;
    multiplied_.advance();
  }

  // Every warp says that it has read the stage, if there is one.
  __device__ __forceinline__ void release(int stage) {
    __syncwarp();
    shared_.empty[max(stage, 0)].arrive_if(stage >= 0 && threadIdx.x % 32 == 0);
  }

  SharedMemory<C>& shared_;
  const Decoder<C> decoder_;
  RingPosition<C::kStages> loaded_, multiplied_;  // the next ones to be
  int previous_ = -1;                             // a stage that is being multiplied, beside the last one
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
      shared.full[stage].init(has_groups ? 3 : 2);                 // producers
      shared.empty[stage].init(C::kWarpgroups * kWarpgroup / 32);  // warps that multiply
    }
    fence_barrier_init();
  }
  __syncthreads();
  const Share share(call);
  if (warpgroup == C::kWarpgroups) {
    give_back_registers_down_to<C::kProducerRegisters>();
    const int warp = threadIdx.x % kWarpgroup / 32;
    if (threadIdx.x % 32 == 0) {
      wait_for_predecessor();
      if (warp == 0) produce<C, Producer::kTokens>(call, maps, share, shared);
      if (warp == 1) produce<C, Producer::kWeights>(call, maps, share, shared);
      if (warp == 2 && has_groups) produce<C, Producer::kGroups>(call, maps, share, shared);
    }
    if (call.splits > 1) {
      __syncwarp();
      cluster_sync();
      cluster_sync();
    }
  } else {
    take_registers_up_to<C::kConsumerRegisters>();
    wait_for_predecessor();
    const int tiles = call.token_tiles * call.column_tiles;
    Consumer<C> consumer(call, shared);
    int panels = 0;
    for (int index = share.first; index < tiles; index += share.step) {
      const Tile tile = find_tile<C>(call, index);
      const int first_column = tile.column + warpgroup * kMarlinTileN;
      float scales[2];
      load_scales<C>(call, first_column, scales);
      Sums<C> sums;
      consumer.multiply(share.end - share.begin, sums);
      if (index + share.step >= tiles) release_successors();
      if (call.splits > 1) {
        leave_sums<C>(shared, sums);
        cluster_sync();
        store_share<C>(call, shared, &maps.result, tile, share.rank, warpgroup, scales);
      } else if (first_column < call.n) {
        store_tile<C>(shared, &maps.result, tile.token, first_column, warpgroup, scales, panels, sums);
      }
    }
    if (threadIdx.x % kWarpgroup == 0) wait_for_store_reads<0>();
    if (call.splits > 1) cluster_sync();  // others may still read what this block has left for them
  }
}

// What the sums lack. Of a float8's one group b_scales hold 2^8 (bf16: 2^120).
template <class C>
constexpr float factor_of(bool one_group) {
  if (C::kFormat == Format::kE2M1) return kFp4Factor<typename C::T>;
  return one_group ? kScaleFactor<typename C::T, C::kFormat> : 1.0f;
}

template <class C>
Status launch_tiles(const MarlinGemmParams& params, int splits, Stream stream) {
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
                     .splits = splits,
                     .token_tiles = static_cast<int>((params.m + C::kTokens - 1) / C::kTokens),
                     .column_tiles = static_cast<int>((params.n + C::kColumns - 1) / C::kColumns),
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
                                         .box_columns = C::kTileBytes / kWeightElement,
                                         .element_bytes = kWeightElement,
                                         .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE}));
  if (call.has_scales) {
    SGL_RETURN_IF_ERROR(encode_matrix_map(kName, &maps.scales,
                                          {.data = const_cast<void*>(params.scales),
                                           .rows = kIsFp4 ? num_groups / 2 : num_groups,
                                           .columns = n,
                                           .row_bytes = n * 2,
                                           .box_rows = group_rows,
                                           .box_columns = C::kColumns,
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
                                         .box_rows = static_cast<uint32_t>(splits > 1 ? 16 : C::kPanel),
                                         .box_columns = kMarlinTileN,
                                         .element_bytes = 2}));
  const int tiles = call.token_tiles * call.column_tiles;
  SGL_RETURN_IF_ERROR(allow_shared_memory(kName, many_tokens_kernel<C>, sizeof(SharedMemory<C>)));
  return launch(kName, many_tokens_kernel<C>,
                {.grid = dim3(splits > 1 ? tiles * splits : std::min(num_sms(), tiles)),
                 .block = dim3(C::kThreads),
                 .shared_bytes = sizeof(SharedMemory<C>),
                 .pdl = true,
                 .cluster = splits},
                stream, call, maps);
}

// From a tile chosen at run time to its instantiation.
template <Format kFormat>
Status launch_token_tile(const MarlinGemmParams& params, const TokenTileChoice& choice, Stream stream) {
  using Launch = Status(const MarlinGemmParams&, int, Stream);
  constexpr auto kLaunches = []<int... i>(std::integer_sequence<int, i...>) {
    struct {
      Launch* f16[kNumTokenTiles];
      Launch* bf16[kNumTokenTiles];
    } table = {{&launch_tiles<Config<__half, kFormat, kTokenTiles[i].warpgroups, kTokenTiles[i].tokens>>...},
               {&launch_tiles<Config<__nv_bfloat16, kFormat, kTokenTiles[i].warpgroups, kTokenTiles[i].tokens>>...}};
    return table;
  }(std::make_integer_sequence<int, kNumTokenTiles>());
  return (params.dtype == DType::kF16 ? kLaunches.f16 : kLaunches.bf16)[choice.tile](params, choice.splits, stream);
}

}  // namespace sgl_kernel::SGL_TARGET::many_tokens
