// The producer of the Hopper prefill kernel: keeps Q and the rings of K and V tiles in shared memory full.
//
// A tile's places in memory are looked up before the producer waits for room, so that the latency of the page table is
// hidden behind the wait.
#pragma once

#include "kernels/attention/flash_attention_prefill_tiles_sm90a.cuh"
#include "kernels/device/copy_async.cuh"

namespace sgl_kernel::SGL_TARGET::prefill {

using Position = RingPosition<kStages>;

// Hands a tile over to the consumers, and loads its queries if it has keys. One lane, after waiting for q_empty.
template <class C>
__device__ __forceinline__ void hand_over(const PrefillCall& call, const Tile& tile, const CUtensorMap* q_map,
                                          SharedMemory<C>& shared) {
  shared.tile = tile;
  if (tile.batch < 0 || tile.begin == tile.end) return shared.q_full.arrive();
  const int row = static_cast<int>(tile.sequence.q_start) + tile.first_row / call.schedule.pack;
  const int batch = call.params.cu_seqlens_q != nullptr ? 0 : tile.batch;
  shared.q_full.arrive_and_expect(C::kQBytes);
  for (int panel = 0; panel < C::kHeadDim / kPanel; ++panel) {
    load_box(shared.q + panel * C::kQPanelBytes, q_map, &shared.q_full, panel * kPanel, 0, row, tile.group, batch);
  }
}

// Calls load_k(tile, n) and load_v(tile, n) for the key tiles of all tiles, in the order in which they are used, and
// hands over the tiles. finish() is called before waiting for something that needs all that was loaded so far. All
// producing warps; the first lane hands over.
template <class C, class LoadK, class LoadV, class Finish>
__device__ __forceinline__ void produce(const PrefillCall& call, SharedMemory<C>& shared, const CUtensorMap* q_map,
                                        LoadK&& load_k, LoadV&& load_v, Finish&& finish) {
  uint32_t q_parity = 0;
  const auto next_tile = [&](const Tile& tile) {
    shared.q_empty.wait(q_parity ^ 1);
    q_parity ^= 1;
    if (threadIdx.x % kWarpgroup == 0) hand_over<C>(call, tile, q_map, shared);
    __syncwarp();
  };
  for_each_tile<C>(call, [&](const Tile& tile) {
    if (tile.begin == tile.end) {
      finish();
      return next_tile(tile);
    }
    load_k(tile, tile.end - 1);
    next_tile(tile);
    for (int n = tile.end - 1; n > tile.begin; --n) {
      load_k(tile, n - 1);
      load_v(tile, n);
    }
    load_v(tile, tile.begin);
  });
  finish();
  Tile no_more = {};
  no_more.batch = -1;
  next_tile(no_more);
}

// One warp: waits for room in `stage`, then loads key tile n, a box a lane.
template <class C, int kPanels>
__device__ __forceinline__ void load_boxes(const PrefillCall& call, const Tile& tile, const CUtensorMap* map,
                                           uint8_t* stage, Barrier* full, const Barrier* empty, uint32_t empty_parity,
                                           int n, int lane) {
  const int first = n * C::kTileN;
  // Boxes behind the last page of the sequence have no page to come from.
  const int rows = call.params.page_table != nullptr ? min(C::kTileN, tile.sequence.k_len - first) : C::kTileN;
  const int boxes = (rows + call.box_rows - 1) / call.box_rows;
  const int box = lane / kPanels, panel = lane % kPanels;
  KeySlot slot = {0, 0};
  if (box < boxes) slot = key_slot(call.params, tile.sequence, first + box * call.box_rows);
  empty->wait(empty_parity);
  if (lane == 0) full->arrive_and_expect(boxes * call.box_rows * kSwizzleBytes * kPanels);
  __syncwarp();
  if (box < boxes) {
    load_box(stage + panel * C::kPanelBytes + box * call.box_rows * kSwizzleBytes, map, full, panel * kPanel, slot.row,
             tile.kv_head, slot.block, 0);
  }
  __syncwarp();
}
// Of a tile, load_boxes() has a lane for each.
template <class C>
inline constexpr bool kBoxesFitWarp = C::kTileN / kLeastBoxRows * (C::kHeadDim / kPanel) <= 32;

// The producer that fetches boxes with the copy engine: one warp.
template <class C>
__device__ __forceinline__ void produce_boxes(const PrefillCall& call, SharedMemory<C>& shared,
                                              const CUtensorMap* q_map, const CUtensorMap* k_map,
                                              const CUtensorMap* v_map) {
  static_assert(kBoxesFitWarp<C> && C::kHeadDimV <= C::kHeadDim);
  const int lane = threadIdx.x % 32;
  Position k_at, v_at;
  const auto load_k = [&](const Tile& tile, int n) {
    load_boxes<C, C::kHeadDim / kPanel>(call, tile, k_map, shared.k[k_at.index], &shared.k_full[k_at.index],
                                        &shared.k_empty[k_at.index], k_at.parity ^ 1, n, lane);
    k_at.advance();
  };
  const auto load_v = [&](const Tile& tile, int n) {
    load_boxes<C, C::kHeadDimV / kPanel>(call, tile, v_map, shared.v[v_at.index], &shared.v_full[v_at.index],
                                         &shared.v_empty[v_at.index], v_at.parity ^ 1, n, lane);
    v_at.advance();
  };
  produce<C>(call, shared, q_map, load_k, load_v, [] {});
}

// What to gather from: k or v, at the KV head.
template <class T>
struct KeyRows {
  const T* data;
  int64_t batch_stride, row_stride;
  int dim;
};

// Waits for room in `stage`, then copies the rows of key tile n one by one: each warp has kTileN / 4 of them, a lane
// finds the place of one row and the lanes then share what they found. Chunk c (16 bytes) of row r lies at chunk
// c ^ (r % 8) of its panel row.
template <class C, int kDim>
__device__ __forceinline__ void gather_rows(const PrefillCall& call, const Tile& tile,
                                            const KeyRows<typename C::Element>& rows, uint8_t* stage,
                                            const Barrier* empty, uint32_t empty_parity, int n, int warp, int lane) {
  using T = typename C::Element;
  constexpr int kRows = C::kTileN / 4;
  static_assert(kRows <= 32, "a lane finds one row");
  constexpr int kChunk = 8;  // elements in 16 bytes
  constexpr int kChunks = kDim / kChunk;
  const int first_row = warp * kRows;
  // A row behind the end of the sequence reads its last row: masked later, but it must be an address.
  const int own_key = min(n * C::kTileN + first_row + min(lane, kRows - 1), tile.sequence.k_len - 1);
  const KeySlot slot = key_slot(call.params, tile.sequence, own_key);
  empty->wait(empty_parity);
  const T* own = rows.data + slot_offset(slot, rows.batch_stride, rows.row_stride);
#pragma unroll 4
  for (int i = lane; i < kRows * kChunks; i += 32) {
    const int row = i / kChunks, chunk = i % kChunks;
    const T* source = reinterpret_cast<const T*>(__shfl_sync(~0u, reinterpret_cast<uint64_t>(own), row));
    const int r = first_row + row;
    uint8_t* destination = stage + chunk / 8 * C::kPanelBytes + r * kSwizzleBytes + ((chunk % 8) ^ (r % 8)) * 16;
    const bool inside = chunk * kChunk < rows.dim;
    copy_async<16>(destination, inside ? source + chunk * kChunk : source, inside ? 16 : 0);
  }
}

// The producer that gathers rows: all four warps. It tells of a tile when the next one is under way, because the writer
// of the copies has to fence them itself.
template <class C>
__device__ __forceinline__ void produce_rows(const PrefillCall& call, SharedMemory<C>& shared,
                                             const CUtensorMap* q_map) {
  using T = typename C::Element;
  const AttentionParams& params = call.params;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  Position k_at, v_at;
  Barrier* pending = nullptr;  // the barrier of the tile that was asked for last
  const auto tell = [&](Barrier* next) {
    commit_copies();
    if (pending != nullptr) {
      wait_for_copies<1>();
      fence_shared_for_async_proxy();
      pending->arrive();
    }
    pending = next;
  };
  const auto load_k = [&](const Tile& tile, int n) {
    const KeyRows<T> k = {static_cast<const T*>(params.k) + tile.kv_head * params.k_head_stride, params.k_batch_stride,
                          params.k_row_stride, params.head_dim};
    gather_rows<C, C::kHeadDim>(call, tile, k, shared.k[k_at.index], &shared.k_empty[k_at.index], k_at.parity ^ 1, n,
                                warp, lane);
    tell(&shared.k_full[k_at.index]);
    k_at.advance();
  };
  const auto load_v = [&](const Tile& tile, int n) {
    const KeyRows<T> v = {static_cast<const T*>(params.v) + tile.kv_head * params.v_head_stride, params.v_batch_stride,
                          params.v_row_stride, params.head_dim_v};
    gather_rows<C, C::kHeadDimV>(call, tile, v, shared.v[v_at.index], &shared.v_empty[v_at.index], v_at.parity ^ 1, n,
                                 warp, lane);
    tell(&shared.v_full[v_at.index]);
    v_at.advance();
  };
  const auto finish = [&] {
    if (pending == nullptr) return;
    wait_for_copies<0>();
    fence_shared_for_async_proxy();
    pending->arrive();
    pending = nullptr;
  };
  produce<C>(call, shared, q_map, load_k, load_v, finish);
}

}  // namespace sgl_kernel::SGL_TARGET::prefill
