// Tiles of the Hopper prefill kernel: their sizes, their place in shared memory, and which block takes which.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/attention/flash_attention_params.h"
#include "kernels/attention/flash_attention_prefill_sm90a.h"
#include "kernels/device/pipeline_sm90.cuh"
#include "kernels/device/tma_sm90.cuh"
#include "kernels/device/wgmma_sm90.cuh"

namespace sgl_kernel::SGL_TARGET::prefill {

inline constexpr int kTileM = 128;  // query rows
inline constexpr int kConsumers = 2;
inline constexpr int kRowsPerConsumer = kTileM / kConsumers;
inline constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
inline constexpr int kPanel = kSwizzleBytes / 2;  // elements
inline constexpr int kStages = 2;                 // of the rings of K and V tiles; a third did not help

// One instantiation. kGather: K and V rows are gathered one by one (any page size), else the copy engine fetches boxes.
template <class T, int kHeadDim_, int kHeadDimV_, bool kGather_>
struct Config {
  using Element = T;
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_;
  static constexpr bool kGather = kGather_;
  static constexpr int kTileN =
      kHeadDimV > 128 ? 64 : 128;  // keys: as many as registers and shared memory have room for
  static constexpr int kQPanelBytes = kTileM * kSwizzleBytes;
  static constexpr int kPanelBytes = kTileN * kSwizzleBytes;  // of K and V
  static constexpr int kQBytes = kHeadDim / kPanel * kQPanelBytes;
  static constexpr int kKBytes = kHeadDim / kPanel * kPanelBytes;
  static constexpr int kVBytes = kHeadDimV / kPanel * kPanelBytes;
  static constexpr int kProducerRegisters = kGather ? 72 : 40;
  static constexpr int kConsumerRegisters = kGather ? 216 : 232;
};

// The work of one tile. The producer finds it and hands it to the consumers together with its queries.
struct Tile {
  AttentionSequence sequence;
  int batch;  // negative: there is no more work
  int group, split, kv_head;
  int first_row;                     // of the tile, in the sequence
  int begin, end;                    // key tiles [begin, end); empty: no key is visible
  int first_key;                     // the first one that any query of the sequence sees
  KeyRange seen_by_all[kConsumers];  // the keys that all rows of a consumer see
};

template <class C>
struct SharedMemory {
  alignas(kSwizzleAtomBytes) uint8_t q[C::kQBytes];
  alignas(kSwizzleAtomBytes) uint8_t k[kStages][C::kKBytes];
  alignas(kSwizzleAtomBytes) uint8_t v[kStages][C::kVBytes];
  Tile tile;  // handed over with q
  Barrier q_full, q_empty;
  Barrier k_full[kStages], k_empty[kStages];
  Barrier v_full[kStages], v_empty[kStages];
};

// Dynamic shared memory, with room to align it.
template <class C>
inline constexpr size_t kSharedBytes = sizeof(SharedMemory<C>) + kSwizzleAtomBytes;

// A kernel's arguments.
struct PrefillCall {
  AttentionParams params;
  PrefillSchedule schedule;
  int box_rows;         // keys that one box of the copy engine holds: kTileN, or page_size if that is less
  float scale_log2;     // log2(e) * softmax_scale, or log2(e) * softcap
  float softcap_scale;  // softmax_scale / softcap; 0: no softcap
};

// False for a tile behind the end of its sequence.
template <class C>
__device__ __forceinline__ bool find_tile(const PrefillCall& call, int index, Tile& tile) {
  const AttentionParams& params = call.params;
  const PrefillSchedule& schedule = call.schedule;
  const int section_tiles = schedule.stripes_per_section * schedule.num_query_tiles;
  const int section = index / section_tiles;
  const int in_section = index - section * section_tiles;
  const int first_stripe = section * schedule.stripes_per_section;
  const int stripes = min(schedule.stripes_per_section, schedule.num_stripes - first_stripe);
  const int rank = in_section / stripes;
  int stripe = first_stripe + in_section - rank * stripes;
  tile.split = stripe % params.num_splits;
  stripe /= params.num_splits;
  tile.batch = stripe / schedule.num_groups;
  tile.group = stripe - tile.batch * schedule.num_groups;
  tile.kv_head = tile.group / schedule.groups_per_kv_head;
  tile.sequence = sequence_of(params, tile.batch);
  const int q_len = tile.sequence.q_len, k_len = tile.sequence.k_len;
  tile.first_row = (schedule.num_query_tiles - 1 - rank) * kTileM;
  if (tile.first_row >= q_len * schedule.pack) return false;
  const int first_token = tile.first_row / schedule.pack;
  const int last_token = min((tile.first_row + kTileM - 1) / schedule.pack, q_len - 1);
  const KeyRange seen = {visible_keys(params, q_len, k_len, first_token).begin,
                         visible_keys(params, q_len, k_len, last_token).end};
  const KeyRange range = split_of(seen, tile.split, params.num_splits, C::kTileN);
  tile.begin = range.begin / C::kTileN;
  tile.end = range.begin < range.end ? (range.end + C::kTileN - 1) / C::kTileN : tile.begin;
  tile.first_key = visible_keys(params, q_len, k_len, 0).begin;
  for (int consumer = 0; consumer < kConsumers; ++consumer) {
    const int first = tile.first_row + consumer * kRowsPerConsumer, last = first + kRowsPerConsumer - 1;
    tile.seen_by_all[consumer] = {visible_keys(params, q_len, k_len, last / schedule.pack).begin,
                                  visible_keys(params, q_len, k_len, first / schedule.pack).end};
  }
  return true;
}

// Calls visit(tile) for each tile of this block, in order. A persistent grid
// takes the tiles a row of blocks at a time, every other row backwards, so that the long and the short tiles of a
// causal mask even out.
template <class C, class Visit>
__device__ __forceinline__ void for_each_tile(const PrefillCall& call, Visit&& visit) {
  bool backwards = false;
  for (int row = 0; row < call.schedule.num_tiles; row += gridDim.x, backwards = !backwards) {
    const int index = row + (backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    Tile tile;
    if (index < call.schedule.num_tiles && find_tile<C>(call, index, tile)) visit(tile);
  }
}

}  // namespace sgl_kernel::SGL_TARGET::prefill
