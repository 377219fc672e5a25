// Attention on Hopper's tensor cores, for many queries: O = softmax(scale Q K^T + mask) V, one pass over the keys.
//
// A block takes tiles of 128 query rows of one head (with packing: of the heads that share a KV head) and walks the
// keys in tiles of kTileN. It has three warpgroups: a producer that keeps rings of K and V tiles in shared memory full,
// and two consumers of 64 rows each. A consumer computes S = Q K^T from shared memory, its softmax in registers, and O
// += P V with P from those registers. Two overlaps keep the tensor cores busy (FlashAttention-3, Shah et al. 2024):
// within a consumer, the product P V of one tile runs during the softmax of the next; between the consumers, named
// barriers let one issue its products while the other is in its softmax.
//
// The grid is either persistent (a block walks tiles blockIdx.x, …, one row of blocks after another, every other row
// backwards, so that the long and the short tiles of a causal mask even out) or has one block a tile.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cfloat>
#include <cstdint>

#include "kernels/attention/flash_attention_prefill_sm90a.h"
#include "kernels/base/launch.h"
#include "kernels/device/pipeline_sm90.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/wgmma_sm90.cuh"

namespace sgl_kernel::SGL_TARGET {

namespace prefill {

inline constexpr int kTileM = 128;  // query rows
inline constexpr int kConsumers = 2;
inline constexpr int kRowsPerConsumer = kTileM / kConsumers;
inline constexpr int kWarpgroup = 128;
inline constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
inline constexpr int kPanel = kSwizzleBytes / 2;  // elements
inline constexpr float kLog2E = 1.4426950408889634f;

// One instantiation. kGather: K and V rows are gathered one by one (any page size), else the copy engine fetches boxes.
template <class T, int kHeadDim_, int kHeadDimV_, int kTileN_, int kStages_, bool kGather_, bool kTakeTurns_ = true,
          bool kLazyRescale_ = true>
struct Config {
  using Element = T;
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_, kTileN = kTileN_, kStages = kStages_;
  static constexpr bool kGather = kGather_;
  static constexpr bool kTakeTurns = kTakeTurns_;      // the consumers alternate in using the tensor cores
  static constexpr bool kLazyRescale = kLazyRescale_;  // O is rescaled only when a maximum has grown by a lot
  static constexpr int kQPanelBytes = kTileM * kSwizzleBytes;
  static constexpr int kPanelBytes = kTileN * kSwizzleBytes;  // of K and V
  static constexpr int kQBytes = kHeadDim / kPanel * kQPanelBytes;
  static constexpr int kKBytes = kHeadDim / kPanel * kPanelBytes;
  static constexpr int kVBytes = kHeadDimV / kPanel * kPanelBytes;
  static constexpr int kProducerRegisters = kGather ? 56 : 40;
  static constexpr int kConsumerRegisters = kGather ? 224 : 232;
};

template <class C>
struct SharedMemory {
  alignas(kSwizzleAtomBytes) uint8_t q[C::kQBytes];
  alignas(kSwizzleAtomBytes) uint8_t k[C::kStages][C::kKBytes];
  alignas(kSwizzleAtomBytes) uint8_t v[C::kStages][C::kVBytes];
  Barrier q_full, q_empty;
  Barrier k_full[C::kStages], k_empty[C::kStages];
  Barrier v_full[C::kStages], v_empty[C::kStages];
};

// Dynamic shared memory, with room to align it.
template <class C>
inline constexpr size_t kSharedBytes = sizeof(SharedMemory<C>) + kSwizzleAtomBytes;

// The work of one tile.
struct Tile {
  int batch, group, kv_head;
  int q_start;  // first token of the sequence in the token dimension of Q and O
  int q_batch;  // and its place in the batch dimension
  int q_len, k_len;
  int first_row, first_token;  // of the tile, in the sequence
  int diagonal;                // key minus query position of the causal diagonal
  int begin, end;              // key tiles [begin, end); empty: no key is visible
};

// False for a tile behind the end of its sequence.
template <class C>
__device__ __forceinline__ bool find_tile(const PrefillArguments& args, int index, Tile& tile) {
  const int section_tiles = args.pairs_per_section * args.num_query_tiles;
  const int section = index / section_tiles;
  const int in_section = index - section * section_tiles;
  const int pairs = min(args.pairs_per_section, args.num_pairs - section * args.pairs_per_section);
  const int rank = in_section / pairs;
  const int pair = section * args.pairs_per_section + in_section - rank * pairs;
  tile.batch = pair / args.num_groups;
  tile.group = pair - tile.batch * args.num_groups;
  tile.kv_head = tile.group / args.groups_per_kv_head;
  tile.q_start = 0;
  tile.q_batch = tile.batch;
  tile.q_len = args.seqlen_q;
  if (args.cu_seqlens_q != nullptr) {
    tile.q_start = args.cu_seqlens_q[tile.batch];
    tile.q_batch = 0;
    tile.q_len = args.cu_seqlens_q[tile.batch + 1] - tile.q_start;
  }
  if (args.seqused_q != nullptr) tile.q_len = args.seqused_q[tile.batch];
  tile.first_row = (args.num_query_tiles - 1 - rank) * kTileM;
  if (tile.first_row >= tile.q_len * args.pack) return false;
  tile.k_len = args.seqlen_k;
  if (args.seqused_k != nullptr) {
    tile.k_len = args.seqused_k[tile.batch];
  } else if (args.cu_seqlens_k != nullptr) {
    tile.k_len = args.cu_seqlens_k[tile.batch + 1] - args.cu_seqlens_k[tile.batch];
  }
  tile.first_token = tile.first_row / args.pack;
  tile.diagonal = tile.k_len - tile.q_len;
  const int last_token = min((tile.first_row + kTileM - 1) / args.pack, tile.q_len - 1);
  int first_key = 0, end_key = tile.k_len;
  if (args.window_right >= 0) end_key = min(end_key, last_token + tile.diagonal + args.window_right + 1);
  if (args.window_left >= 0) first_key = max(0, tile.first_token + tile.diagonal - args.window_left);
  tile.begin = first_key / C::kTileN;
  tile.end = first_key < end_key ? (end_key + C::kTileN - 1) / C::kTileN : tile.begin;
  return true;
}

// Calls visit(tile) for each tile of this block, in order; all warps of the block see the same ones.
template <class C, class Visit>
__device__ __forceinline__ void for_each_tile(const PrefillArguments& args, Visit&& visit) {
  bool backwards = false;
  for (int row = 0; row < args.num_tiles; row += gridDim.x, backwards = !backwards) {
    const int index = row + (backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    Tile tile;
    if (index < args.num_tiles && find_tile<C>(args, index, tile)) visit(tile);
  }
}

// Where key `row` of a sequence lies: its place in the batch (or page) dimension and in the token dimension.
struct KeyPlace {
  int batch, token;
};

__device__ __forceinline__ KeyPlace find_key(const PrefillArguments& args, const Tile& tile, int row) {
  const int batch = args.kv_batch_index != nullptr ? args.kv_batch_index[tile.batch] : tile.batch;
  if (args.page_table != nullptr) {
    const int page = row / args.page_size;
    return {args.page_table[batch * args.page_table_stride + page], row - page * args.page_size};
  }
  if (args.cu_seqlens_k != nullptr) return {0, args.cu_seqlens_k[tile.batch] + row};
  return {batch, row};
}

template <class C>
__device__ __forceinline__ void load_queries(const PrefillArguments& args, const Tile& tile, const CUtensorMap* q_map,
                                             SharedMemory<C>& shared) {
  shared.q_full.arrive_and_expect(C::kQBytes);
  for (int panel = 0; panel < C::kHeadDim / kPanel; ++panel) {
    load_box(shared.q + panel * C::kQPanelBytes, q_map, &shared.q_full, panel * kPanel, 0,
             tile.q_start + tile.first_token, tile.group, tile.q_batch);
  }
}

// One warp: the boxes of key tile n, spread over its lanes.
template <class C, int kPanels>
__device__ __forceinline__ void load_boxes(const PrefillArguments& args, const Tile& tile, const CUtensorMap* map,
                                           uint8_t* destination, Barrier* full, int n, int lane) {
  const int first = n * C::kTileN;
  // Boxes behind the last page of the sequence have no page to come from.
  const int rows = args.page_table != nullptr ? min(C::kTileN, tile.k_len - first) : C::kTileN;
  if (args.box_rows == C::kTileN) {
    if (lane == 0) {
      const KeyPlace place = find_key(args, tile, first);
      full->arrive_and_expect(C::kTileN * kSwizzleBytes * kPanels);
      for (int panel = 0; panel < kPanels; ++panel) {
        load_box(destination + panel * C::kPanelBytes, map, full, panel * kPanel, place.token, tile.kv_head,
                 place.batch, 0);
      }
    }
    __syncwarp();
    return;
  }
  const int boxes = (rows + args.box_rows - 1) / args.box_rows;
  if (lane == 0) full->arrive_and_expect(boxes * args.box_rows * kSwizzleBytes * kPanels);
  __syncwarp();
#pragma unroll 1
  for (int i = lane; i < boxes * kPanels; i += 32) {
    const int box = i / kPanels, panel = i % kPanels;
    const KeyPlace place = find_key(args, tile, first + box * args.box_rows);
    load_box(destination + panel * C::kPanelBytes + box * args.box_rows * kSwizzleBytes, map, full, panel * kPanel,
             place.token, tile.kv_head, place.batch, 0);
  }
}

// The producer that fetches boxes with the copy engine: one warp.
template <class C>
__device__ __forceinline__ void produce_boxes(const PrefillArguments& args, SharedMemory<C>& shared,
                                              const CUtensorMap* q_map, const CUtensorMap* k_map,
                                              const CUtensorMap* v_map) {
  const int lane = threadIdx.x % 32;
  RingPosition<C::kStages> k_at, v_at;
  uint32_t q_parity = 0;
  for_each_tile<C>(args, [&](const Tile& tile) {
    if (tile.begin == tile.end) return;
    const auto load_k = [&](int n) {
      shared.k_empty[k_at.index].wait(k_at.parity ^ 1);
      load_boxes<C, C::kHeadDim / kPanel>(args, tile, k_map, shared.k[k_at.index], &shared.k_full[k_at.index], n, lane);
      k_at.advance();
    };
    const auto load_v = [&](int n) {
      shared.v_empty[v_at.index].wait(v_at.parity ^ 1);
      load_boxes<C, C::kHeadDimV / kPanel>(args, tile, v_map, shared.v[v_at.index], &shared.v_full[v_at.index], n,
                                           lane);
      v_at.advance();
    };
    load_k(tile.end - 1);
    shared.q_empty.wait(q_parity ^ 1);
    q_parity ^= 1;
    if (lane == 0) load_queries<C>(args, tile, q_map, shared);
    __syncwarp();
    for (int n = tile.end - 1; n > tile.begin; --n) {
      load_k(n - 1);
      load_v(n);
    }
    load_v(tile.begin);
  });
}

// Copies the rows of key tile n one by one: each warp has kTileN / 4 of them, a lane finds the place of one row and
// the lanes then share what they found. Chunk c (16 bytes) of row r lies at chunk c ^ (r % 8) of its panel row.
template <class C, int kDim>
__device__ __forceinline__ void gather_rows(const PrefillArguments& args, const Tile& tile, const void* data,
                                            int64_t stride_batch, int64_t stride_token, int64_t stride_head, int dim,
                                            uint32_t destination, int n, int warp, int lane) {
  using T = typename C::Element;
  constexpr int kRows = C::kTileN / 4;
  static_assert(kRows <= 32, "a lane finds one row");
  constexpr int kChunk = 8;  // elements in 16 bytes
  constexpr int kChunks = kDim / kChunk;
  const int first_row = warp * kRows;
  // A row behind the end of the sequence reads its last row: masked later, but it must be an address.
  const int own_row = min(n * C::kTileN + first_row + min(lane, kRows - 1), tile.k_len - 1);
  const KeyPlace place = find_key(args, tile, own_row);
  const T* own = static_cast<const T*>(data) + place.batch * stride_batch + place.token * stride_token +
                 tile.kv_head * stride_head;
#pragma unroll 4
  for (int i = lane; i < kRows * kChunks; i += 32) {
    const int row = i / kChunks, chunk = i % kChunks;
    const T* source = reinterpret_cast<const T*>(__shfl_sync(~0u, reinterpret_cast<uint64_t>(own), row));
    const int r = first_row + row;
    const uint32_t at = destination + chunk / 8 * C::kPanelBytes + r * kSwizzleBytes + ((chunk % 8) ^ (r % 8)) * 16;
    const bool inside = chunk * kChunk < dim;
    copy_async_16(at, inside ? source + chunk * kChunk : source, inside);
  }
}

// The producer that gathers rows: all four warps. It tells of a tile when the next one is under way, because the writer
// of the copies has to fence them itself.
template <class C>
__device__ __forceinline__ void produce_rows(const PrefillArguments& args, SharedMemory<C>& shared,
                                             const CUtensorMap* q_map) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  RingPosition<C::kStages> k_at, v_at;
  uint32_t q_parity = 0;
  Barrier* pending = nullptr;  // the barrier of the tile that was asked for last
  const auto tell = [&](Barrier* next) {
    commit_copies();
    if (pending != nullptr) {
      wait_copies<1>();
      fence_shared_for_async_proxy();
      pending->arrive();
    }
    pending = next;
  };
  for_each_tile<C>(args, [&](const Tile& tile) {
    if (tile.begin == tile.end) return;
    const auto load_k = [&](int n) {
      shared.k_empty[k_at.index].wait(k_at.parity ^ 1);
      gather_rows<C, C::kHeadDim>(args, tile, args.k, args.k_stride_batch, args.k_stride_token, args.k_stride_head,
                                  args.head_dim, shared_address(shared.k[k_at.index]), n, warp, lane);
      tell(&shared.k_full[k_at.index]);
      k_at.advance();
    };
    const auto load_v = [&](int n) {
      shared.v_empty[v_at.index].wait(v_at.parity ^ 1);
      gather_rows<C, C::kHeadDimV>(args, tile, args.v, args.v_stride_batch, args.v_stride_token, args.v_stride_head,
                                   args.head_dim_v, shared_address(shared.v[v_at.index]), n, warp, lane);
      tell(&shared.v_full[v_at.index]);
      v_at.advance();
    };
    load_k(tile.end - 1);
    shared.q_empty.wait(q_parity ^ 1);
    q_parity ^= 1;
    if (threadIdx.x % kWarpgroup == 0) load_queries<C>(args, tile, q_map, shared);
    __syncwarp();
    for (int n = tile.end - 1; n > tile.begin; --n) {
      load_k(n - 1);
      load_v(n);
    }
    load_v(tile.begin);
  });
  if (pending != nullptr) {
    wait_copies<0>();
    fence_shared_for_async_proxy();
    pending->arrive();
  }
}

__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float tanh_approximate(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack_pair<__nv_bfloat16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
__device__ __forceinline__ uint32_t pack_pair<__half>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Over the four lanes that hold one row.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// What a consumer thread knows of its rows: r = 0 and 1 are row lane / 4 and that plus 8 of its warp's 16.
struct RowState {
  float max[2];  // of the unscaled scores, the one that exponents refer to; the same in the four lanes of a row
  float sum[2];  // of the exponentials, this lane's part
};

template <int kTileN>
__device__ __forceinline__ void apply_softcap(float (&s)[kTileN / 2], float softcap_scale) {
#pragma unroll
  for (int i = 0; i < kTileN / 2; ++i) s[i] = tanh_approximate(s[i] * softcap_scale);
}

// Keys outside [low[r], high[r]], counted from the first column of this thread, get -inf.
template <int kTileN>
__device__ __forceinline__ void apply_mask(float (&s)[kTileN / 2], const int (&low)[2], const int (&high)[2]) {
#pragma unroll
  for (int i = 0; i < kTileN / 2; ++i) {
    const int column = i / 4 * 8 + i % 2, r = i / 2 % 2;
    if (column < low[r] || column > high[r]) s[i] = -INFINITY;
  }
}

// Turns scores into exponentials against the running maximum; `rescale` gets the factors for O. Returns whether any of
// this warp's factors is not 1.
template <class C>
__device__ __forceinline__ bool softmax_step(float (&s)[C::kTileN / 2], float scale_log2, RowState& rows,
                                             float (&rescale)[2]) {
  // A maximum may lag behind by 2^8 before O follows: the exponentials still fit f16, and the error is relative.
  constexpr float kLag = C::kLazyRescale ? 8.0f : 0.0f;
  bool changed = false;
  float offset[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float even = s[2 * r], odd = s[2 * r + 1];
#pragma unroll
    for (int j = 1; j < C::kTileN / 8; ++j) {
      even = fmaxf(even, s[4 * j + 2 * r]);
      odd = fmaxf(odd, s[4 * j + 2 * r + 1]);
    }
    const float tile_max = quad_max(fmaxf(even, odd));
    rescale[r] = 1.0f;
    // Not true while both are -inf: their difference is NaN.
    if ((tile_max - rows.max[r]) * scale_log2 > kLag) {
      rescale[r] = exp2_approximate((rows.max[r] - tile_max) * scale_log2);
      rows.max[r] = tile_max;
      changed = true;
    }
    offset[r] = rows.max[r] == -INFINITY ? 0.0f : rows.max[r] * scale_log2;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float even = 0.0f, odd = 0.0f;
#pragma unroll
    for (int j = 0; j < C::kTileN / 8; ++j) {
      float& a = s[4 * j + 2 * r];
      float& b = s[4 * j + 2 * r + 1];
      a = exp2_approximate(fmaf(a, scale_log2, -offset[r]));
      b = exp2_approximate(fmaf(b, scale_log2, -offset[r]));
      even += a;
      odd += b;
    }
    rows.sum[r] = rows.sum[r] * rescale[r] + (even + odd);
  }
  return __any_sync(~0u, changed);
}

// The scores' columns become A's: two groups of 8 columns a k-step.
template <class C>
__device__ __forceinline__ void pack_probabilities(const float (&s)[C::kTileN / 2], uint32_t (&p)[C::kTileN / 16][4]) {
#pragma unroll
  for (int i = 0; i < C::kTileN / 4; ++i) {
    p[i / 4][i % 4] = pack_pair<typename C::Element>(s[2 * i], s[2 * i + 1]);
  }
}

// The widest wgmma that O uses; a wider O is two of them side by side.
template <class C>
inline constexpr int kOutN = C::kHeadDimV < 128 ? C::kHeadDimV : 128;
template <class C>
inline constexpr int kOutParts = C::kHeadDimV / kOutN<C>;

// Four neighbouring lanes hold two columns each of four groups of 8; afterwards lane q holds all of group q.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const bool upper = lane & bit;
      const uint32_t received = __shfl_xor_sync(~0u, upper ? w[i] : w[i | bit], bit);
      (upper ? w[i] : w[i | bit]) = received;
    }
  }
}

template <class C>
struct Consumer {
  using T = typename C::Element;
  static constexpr int kTileN = C::kTileN;

  const PrefillArguments& args;
  SharedMemory<C>& shared;
  const int consumer, lane, warp;  // warp of the warpgroup
  const uint64_t q_descriptor, k_descriptor, v_descriptor;
  RingPosition<C::kStages> k_at, v_at;
  uint32_t q_parity = 0;

  __device__ __forceinline__ Consumer(const PrefillArguments& args, SharedMemory<C>& shared, int consumer)
      : args(args),
        shared(shared),
        consumer(consumer),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32 % 4),
        q_descriptor(make_descriptor(shared_address(shared.q) + consumer * kRowsPerConsumer * kSwizzleBytes, 0)),
        k_descriptor(make_descriptor(shared_address(shared.k), 0)),
        v_descriptor(make_descriptor(shared_address(shared.v), C::kPanelBytes)) {}

  // The barriers of two consumers taking turns: 1 and 2.
  __device__ __forceinline__ void wait_for_turn() const {
    if constexpr (C::kTakeTurns) named_barrier_sync(1 + consumer, kConsumers * kWarpgroup);
  }
  __device__ __forceinline__ void pass_turn() const {
    if constexpr (C::kTakeTurns) named_barrier_arrive(1 + (consumer ^ 1), kConsumers * kWarpgroup);
  }

  // A warp at a time: wait_wgmma() waits for the own warp's part only.
  __device__ __forceinline__ void release(Barrier& empty) const {
    if (lane == 0) empty.arrive();
  }

  __device__ __forceinline__ void issue_scores(float (&s)[kTileN / 2]) const {
    const uint64_t k = k_descriptor + k_at.index * descriptor_offset(C::kKBytes);
    pin_registers(s);
    open_wgmma();
#pragma unroll
    for (int step = 0; step < C::kHeadDim / 16; ++step) {
      const int panel = step / 4, inside = step % 4 * 32;  // a k-step is 32 of a panel row's 128 bytes
      wgmma_shared<T, kTileN>(s, q_descriptor + descriptor_offset(panel * C::kQPanelBytes + inside),
                              k + descriptor_offset(panel * C::kPanelBytes + inside), step != 0);
    }
    commit_wgmma();
    pin_registers(s);
  }

  __device__ __forceinline__ void pin(float (&o)[kOutParts<C>][kOutN<C> / 2]) const {
#pragma unroll
    for (int part = 0; part < kOutParts<C>; ++part) pin_registers(o[part]);
  }
  __device__ __forceinline__ void pin(uint32_t (&p)[kTileN / 16][4]) const {
#pragma unroll
    for (int step = 0; step < kTileN / 16; ++step) pin_registers(p[step]);
  }

  __device__ __forceinline__ void issue_values(float (&o)[kOutParts<C>][kOutN<C> / 2],
                                               uint32_t (&p)[kTileN / 16][4]) const {
    const uint64_t v = v_descriptor + v_at.index * descriptor_offset(C::kVBytes);
    pin(o);
    pin(p);
    open_wgmma();
#pragma unroll
    for (int step = 0; step < kTileN / 16; ++step) {
#pragma unroll
      for (int part = 0; part < kOutParts<C>; ++part) {
        constexpr int kPartBytes = kOutN<C> / kPanel * C::kPanelBytes;
        wgmma_registers<T, kOutN<C>>(o[part], p[step],
                                     v + descriptor_offset(part * kPartBytes + step * 16 * kSwizzleBytes));
      }
    }
    commit_wgmma();
    pin(o);
  }

  // The first and last key that this query row sees.
  __device__ __forceinline__ void find_visible(const Tile& tile, int row, int& first, int& last) const {
    const int diagonal = row / args.pack + tile.diagonal;
    first = args.window_left >= 0 ? diagonal - args.window_left : 0;
    last = args.window_right >= 0 ? min(diagonal + args.window_right, tile.k_len - 1) : tile.k_len - 1;
  }

  // Softcap and mask of key tile n. Keys from `first` to `last` are visible to all rows of this consumer.
  __device__ __forceinline__ void adjust_scores(float (&s)[kTileN / 2], const Tile& tile, int n, int first,
                                                int last) const {
    if (args.softcap_scale != 0.0f) apply_softcap<kTileN>(s, args.softcap_scale);
    if (n * kTileN >= first && n * kTileN + kTileN - 1 <= last) return;
    int low[2], high[2];
    const int column = n * kTileN + lane % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      find_visible(tile, tile.first_row + consumer * kRowsPerConsumer + warp * 16 + r * 8 + lane / 4, low[r], high[r]);
      low[r] -= column;
      high[r] -= column;
    }
    apply_mask<kTileN>(s, low, high);
  }

  // The rows of V behind the end of the sequence may hold anything, NaN too, and 0 * NaN is NaN. Both consumers write
  // the same zeros; each waits for its own.
  __device__ __forceinline__ void clear_values_from(int row) const {
    shared.v_full[v_at.index].wait(v_at.parity);
    constexpr int kChunks = kSwizzleBytes / 16;
    uint8_t* v = shared.v[v_at.index];
#pragma unroll 1
    for (int panel = 0; panel < C::kHeadDimV / kPanel; ++panel) {
#pragma unroll 1
      for (int i = row * kChunks + warp * 32 + lane; i < kTileN * kChunks; i += kWarpgroup) {
        *reinterpret_cast<uint4*>(v + panel * C::kPanelBytes + i * 16) = uint4{0, 0, 0, 0};
      }
    }
    fence_shared_for_async_proxy();
    named_barrier_sync(3 + consumer, kWarpgroup);
  }

  __device__ __forceinline__ void store(const Tile& tile, float (&o)[kOutParts<C>][kOutN<C> / 2],
                                        const RowState& rows) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = tile.first_row + consumer * kRowsPerConsumer + warp * 16 + r * 8 + lane / 4;
      const int token = row / args.pack;
      const int head = tile.group * args.pack + row - token * args.pack;
      const bool inside = token < tile.q_len;
      float sum = quad_sum(rows.sum[r]);
      float max = rows.max[r] == -INFINITY ? -INFINITY : rows.max[r] * args.scale_log2;
      float factor = 1.0f;
      if (args.sinks != nullptr && inside) {
        // One more logit in the denominator, without a value.
        const float sink = args.sinks[head] * kLog2E;
        const float new_max = fmaxf(fmaxf(max, sink), -FLT_MAX);  // finite, also where both are -inf
        factor = exp2_approximate(max - new_max);
        sum = sum * factor + exp2_approximate(sink - new_max);
        max = new_max;
      }
      if (args.lse != nullptr && inside && lane % 4 == 0) {
        args.lse[tile.q_batch * args.lse_stride_batch + (tile.q_start + token) * args.lse_stride_token +
                 head * args.lse_stride_head] = sum > 0.0f ? (max + log2f(sum)) / kLog2E : -INFINITY;
      }
      factor = sum > 0.0f ? factor / sum : 0.0f;
      T* out = static_cast<T*>(args.out) + tile.q_batch * args.out_stride_batch +
               (tile.q_start + token) * args.out_stride_token + head * args.out_stride_head;
#pragma unroll
      for (int group = 0; group < C::kHeadDimV / 32; ++group) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = group * 4 + i, part = j / (kOutN<C> / 8), at = j % (kOutN<C> / 8) * 4 + 2 * r;
          words[i] = pack_pair<T>(o[part][at] * factor, o[part][at + 1] * factor);
        }
        transpose_quad(words, lane);
        const int column = group * 32 + lane % 4 * 8;
        if (inside && column < args.head_dim_v) {
          *reinterpret_cast<uint4*>(out + column) = uint4{words[0], words[1], words[2], words[3]};
        }
      }
    }
  }

  __device__ __forceinline__ void compute(const Tile& tile) {
    float o[kOutParts<C>][kOutN<C> / 2];
#pragma unroll
    for (int part = 0; part < kOutParts<C>; ++part) {
#pragma unroll
      for (int i = 0; i < kOutN<C> / 2; ++i) o[part][i] = 0.0f;
    }
    RowState rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    if (tile.begin == tile.end) return store(tile, o, rows);

    int first, last, unused;
    find_visible(tile, tile.first_row + (consumer + 1) * kRowsPerConsumer - 1, first, unused);
    find_visible(tile, tile.first_row + consumer * kRowsPerConsumer, unused, last);

    float s[kTileN / 2];
    uint32_t p[kTileN / 16][4];
    float rescale[2];
    shared.q_full.wait(q_parity);
    q_parity ^= 1;
    shared.k_full[k_at.index].wait(k_at.parity);
    issue_scores(s);
    wait_wgmma<0>();
    pin_registers(s);
    release(shared.k_empty[k_at.index]);
    k_at.advance();
    if (tile.end - 1 == tile.begin) release(shared.q_empty);
    adjust_scores(s, tile, tile.end - 1, first, last);
    softmax_step<C>(s, args.scale_log2, rows, rescale);
    pack_probabilities<C>(s, p);
    if (tile.end * kTileN > tile.k_len) clear_values_from(tile.k_len - (tile.end - 1) * kTileN);

#pragma unroll 1
    for (int n = tile.end - 2; n >= tile.begin; --n) {
      shared.k_full[k_at.index].wait(k_at.parity);
      wait_for_turn();
      issue_scores(s);
      shared.v_full[v_at.index].wait(v_at.parity);
      issue_values(o, p);
      pass_turn();
      wait_wgmma<1>();
      pin_registers(s);
      release(shared.k_empty[k_at.index]);
      k_at.advance();
      if (n == tile.begin) release(shared.q_empty);
      adjust_scores(s, tile, n, first, last);
      const bool changed = softmax_step<C>(s, args.scale_log2, rows, rescale);
      wait_wgmma<0>();
      pin(o);
      pin(p);
      release(shared.v_empty[v_at.index]);
      v_at.advance();
      pack_probabilities<C>(s, p);
      if (!C::kLazyRescale || changed) {
#pragma unroll
        for (int part = 0; part < kOutParts<C>; ++part) {
#pragma unroll
          for (int i = 0; i < kOutN<C> / 2; ++i) o[part][i] *= rescale[i / 2 % 2];
        }
      }
    }
    shared.v_full[v_at.index].wait(v_at.parity);
    issue_values(o, p);
    wait_wgmma<0>();
    pin(o);
    release(shared.v_empty[v_at.index]);
    v_at.advance();
    store(tile, o, rows);
  }
};

template <class C>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_kernel(const __grid_constant__ PrefillArguments args, const __grid_constant__ CUtensorMap q_map,
                   const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map) {
  extern __shared__ uint8_t dynamic_shared[];
  SharedMemory<C>& shared = *reinterpret_cast<SharedMemory<C>*>(
      (reinterpret_cast<uintptr_t>(dynamic_shared) + kSwizzleAtomBytes - 1) / kSwizzleAtomBytes * kSwizzleAtomBytes);
  // The shuffle tells the compiler that the whole warp agrees.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&q_map);
    if constexpr (!C::kGather) {
      prefetch_tensor_map(&k_map);
      prefetch_tensor_map(&v_map);
    }
    constexpr int kConsumerWarps = kConsumers * kWarpgroup / 32;
    constexpr int kProducerArrivals = C::kGather ? kWarpgroup : 1;
    shared.q_full.init(1);
    shared.q_empty.init(kConsumerWarps);
    for (int stage = 0; stage < C::kStages; ++stage) {
      shared.k_full[stage].init(kProducerArrivals);
      shared.v_full[stage].init(kProducerArrivals);
      shared.k_empty[stage].init(kConsumerWarps);
      shared.v_empty[stage].init(kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (warpgroup == 0) {
    give_back_registers_down_to<C::kProducerRegisters>();
    if constexpr (C::kGather) {
      produce_rows<C>(args, shared, &q_map);
    } else if (threadIdx.x < 32) {
      produce_boxes<C>(args, shared, &q_map, &k_map, &v_map);
    }
  } else {
    take_registers_up_to<C::kConsumerRegisters>();
    Consumer<C> consumer(args, shared, warpgroup - 1);
    if (warpgroup == 2) consumer.pass_turn();  // the first consumer begins
    for_each_tile<C>(args, [&](const Tile& tile) { consumer.compute(tile); });
  }
}

template <class C>
Status launch_prefill(const char* operator_name, const PrefillCall& call, Stream stream) {
  constexpr bool kIsBf16 = std::is_same_v<typename C::Element, __nv_bfloat16>;
  PrefillArguments args = call.args;
  args.num_tiles = args.num_pairs * args.num_query_tiles;
  CUtensorMap q_map = {}, k_map = {}, v_map = {};
  TensorMapShape q = call.q, k = call.k, v = call.v;
  q.box[0] = k.box[0] = v.box[0] = kPanel;
  q.box[1] = args.pack;
  q.box[2] = kTileM / args.pack;
  SGL_RETURN_IF_ERROR(encode_tensor_map(operator_name, &q_map, q, kIsBf16));
  if (!C::kGather) {
    args.box_rows = args.page_table != nullptr && args.page_size < C::kTileN ? args.page_size : C::kTileN;
    k.box[1] = v.box[1] = args.box_rows;
    SGL_RETURN_IF_ERROR(encode_tensor_map(operator_name, &k_map, k, kIsBf16));
    SGL_RETURN_IF_ERROR(encode_tensor_map(operator_name, &v_map, v, kIsBf16));
  }
  SGL_RETURN_IF_ERROR(allow_shared_memory(operator_name, prefill_kernel<C>, kSharedBytes<C>));
  const int grid = call.persistent ? min(num_sms(), args.num_tiles) : args.num_tiles;
  const LaunchShape shape = {.grid = dim3(grid), .block = dim3(kThreads), .shared_bytes = kSharedBytes<C>};
  return launch(operator_name, prefill_kernel<C>, shape, stream, args, q_map, k_map, v_map);
}

}  // namespace prefill
}  // namespace sgl_kernel::SGL_TARGET
