// Attention of few queries over long caches (decoding): bound by the bandwidth at which keys and values are read.
//
// One block a (split of the keys, tile of 16 packed rows and KV head, sequence). The query heads that share a KV head
// are rows of one tile, so every key is read once for all of them. Each warp walks its own keys, 16 at a time (32 of
// fp8), through its own ring in shared memory: no barrier of the block until the end, where the warps' softmaxes are
// merged in order. The rings hold up to 96 KiB, of which all but one slot is under way while a slot is used; two blocks
// fit a multiprocessor of 228 KiB, which is several times the bandwidth-delay product of its share of the memory.
//
// Where the target has clusters, the splits of one cluster are merged as well, in order and through shared memory:
// each block takes every so many rows. Short calls are a chain of latencies (lengths, page table, keys, merge), so what
// stands before and after the loop is kept short: numbers that need a division come from the host.
//
// bf16, 64 query and 4 KV heads of 128, pages of 64, on an H200 (2026-11-23): 245 µs = 4402 GB/s for 128 sequences of
// 4096 keys, 67 µs = 4019 GB/s for 16 of 8192, 12 µs for one of 8192.
#pragma once

#include <algorithm>
#include <bit>

#include "kernels/attention/flash_attention_fragments.cuh"
#include "kernels/attention/flash_attention_portable.h"
#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"
#include "kernels/device/reduce.cuh"

namespace sgl_kernel::SGL_TARGET {

template <class T, int kHeadDim_, int kHeadDimV_>
struct GroupedHeadsConfig : AttentionTypes<T> {
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_;
  static constexpr int kHeadWords = AttentionTypes<T>::words(kHeadDim);
  static constexpr int kHeadWordsV = AttentionTypes<T>::words(kHeadDimV);
  // Keys of a warp's step: one depth of P V. Of fp8 two, as many bytes; 256 dimensions leave no registers for that.
  static constexpr int kWarpKeys = AttentionTypes<T>::kIsFp8 && kHeadDim <= 192 ? 32 : 16;
  static constexpr int kKeyBytes = kWarpKeys * kHeadWords * 2, kValueBytes = kWarpKeys * kHeadWordsV * 2;
  static constexpr int kSlotBytes = kKeyBytes + kValueBytes;
  // As deep as 96 KiB allow (what an sm_89 or sm_120 block can have), but not deeper than 3: then two blocks fit. Four
  // warps, unless they could not have two slots each.
  static constexpr int kMostShared = 96 * 1024;
  static constexpr int kWarps = kSlotBytes * 4 * 2 <= kMostShared ? 4 : 2;
  static constexpr int kStages = std::min(kMostShared / (kSlotBytes * kWarps), 3);
  static constexpr int kRingBytes = kSlotBytes * kStages;  // of a warp
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kBlockKeys = kWarps * kWarpKeys;
  static constexpr int kShared = kRingBytes * kWarps;
  static constexpr int kLanePairs = kHeadDimV / (2 * kWarp);  // a lane merges columns 2 lane + 64 i and the next
  static_assert(kStages >= 2 && kRingBytes >= kMmaRows * kHeadDimV * 4, "a warp's output is merged through its ring");
  static_assert(kSplitTile % kWarpKeys == 0);
};

// A cache's offsets fit 32 bits in units of the largest power of two that divides its strides.
struct CacheStrides {
  uint32_t batch, row, unit_bytes;
};

// What the host works out from the AttentionParams.
struct GroupedHeadsParams {
  CacheStrides k, v;
  // position / page_size is position * page_multiplier >> page_shift, for all positions below 2^31.
  uint32_t page_multiplier = 0;
  int page_shift = 0;
  int group = 1;  // query heads that share a KV head
  // row / group is row * group_multiplier >> 16, for the rows of few_packed_rows().
  uint32_t group_multiplier = 0;
  int row_tiles_log2 = 0;
  int first_batch = 0;
};

// Copies kRows keys of one KV head, or their values, into a slot. Lane i brings the offset of row i, and bit i of
// `valid` says whether it is one; the other rows become zeros. Dimensions are 16-bit words.
template <int kDim, int kRows>
__device__ __forceinline__ void copy_rows(uint32_t tile, const uint8_t* head, uint32_t unit_bytes, uint32_t offset,
                                          uint32_t valid, int head_dim, int lane) {
  constexpr int kChunks = kDim / kChunk, kBytes = 16;
  if constexpr (kWarp % kChunks == 0) {  // a lane has one column, and rows that are a power of two apart
    constexpr int kRowsAtOnce = kWarp / kChunks;
    const int first_row = lane / kChunks, chunk = lane % kChunks;
    const uint32_t lane_tile = tile + swizzled<kDim>(first_row, chunk);
    const uint8_t* column = head + chunk * kBytes;
    if (chunk * kChunk >= head_dim) {
      valid = 0;
      column = head;
    }
    valid >>= first_row;
#pragma unroll
    for (int row = 0; row < kRows; row += kRowsAtOnce) {
      const uint32_t from = __shfl_sync(0xffffffffu, offset, row + first_row);
      copy_chunk_async((lane_tile ^ (swizzle_of_row<kDim>(row) * kBytes)) + row * kDim * 2,
                       column + static_cast<uint64_t>(from) * unit_bytes, (valid >> row) & 1);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kRows * kChunks / kWarp; ++i) {
      const int row = (i * kWarp + lane) / kChunks, chunk = (i * kWarp + lane) % kChunks;
      const uint32_t from = __shfl_sync(0xffffffffu, offset, row);
      const bool in_head = chunk * kChunk < head_dim;
      copy_chunk_async(tile + swizzled<kDim>(row, chunk),
                       head + static_cast<uint64_t>(from) * unit_bytes + (in_head ? chunk * kBytes : 0),
                       in_head && ((valid >> row) & 1) != 0);
    }
  }
}

// A row's merged softmax: the largest score, the sum of exp(score - max), and a lane's columns of sum exp(…) v.
template <class C>
struct MergedRow {
  float max, sum;
  float2 output[C::kLanePairs];
};

// The blocks that merge their splits: one, on targets without clusters.
struct SingleBlocks {
  static constexpr int kMostBlocks = 1;
  template <class Kernel>
  static Status allow(Kernel, int /*cluster*/) {
    return OkStatus();
  }
};

template <class C, class Blocks>
__global__ void __launch_bounds__(C::kThreads)
    attend_grouped_heads_kernel(const __grid_constant__ AttentionParams params,
                                const __grid_constant__ GroupedHeadsParams derived) {
  using T = typename C::Source;
  using Out = typename C::Out;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ float warp_max[C::kWarps][kMmaRows], warp_sum[C::kWarps][kMmaRows];
  wait_for_predecessor();
  release_successors();

  const int split = blockIdx.x, batch = derived.first_batch + blockIdx.z;
  const int kv_head = blockIdx.y >> derived.row_tiles_log2;
  const int first_row = (blockIdx.y & ((1 << derived.row_tiles_log2) - 1)) * kMmaRows;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int group = derived.group;
  const auto token_of = [&](int row) { return static_cast<int>(row * derived.group_multiplier >> 16); };
  const auto unpack = [&](int row) {
    const int token = token_of(row);
    return PackedRow{token, kv_head * group + row - token * group};
  };

  const AttentionSequence sequence = sequence_of(params, batch);
  const int num_rows = sequence.q_len * group;
  if (first_row >= num_rows) return;  // with all the splits' blocks

  // The queries go through what is the last slot of warp 0 until the first step.
  const uint32_t query_tile = shared_address(shared) + C::kRingBytes - C::kSlotBytes;
  for (int i = threadIdx.x; i < kMmaRows * C::kHeadWords / kChunk; i += C::kThreads) {
    constexpr int kChunks = C::kHeadWords / kChunk;
    const int row = i / kChunks, chunk = i % kChunks;
    const bool valid = first_row + row < num_rows && chunk * C::kPerChunk < params.head_dim;
    const PackedRow packed = unpack(valid ? first_row + row : first_row);
    const T* source = static_cast<const T*>(params.q) + batch * params.q_batch_stride +
                      (sequence.q_start + packed.token) * params.q_row_stride + packed.head * params.q_head_stride;
    copy_chunk_async(query_tile + swizzled<C::kHeadWords>(row, chunk), valid ? source + chunk * C::kPerChunk : source,
                     valid);
  }
  commit_copies();

  const int last_row = min(first_row + kMmaRows, num_rows) - 1;
  const KeyRange seen_by_first = visible_keys(params, sequence.q_len, sequence.k_len, token_of(first_row));
  const KeyRange seen_by_last = visible_keys(params, sequence.q_len, sequence.k_len, token_of(last_row));
  const KeyRange range = split_of({seen_by_first.begin, seen_by_last.end}, split, params.num_splits, kSplitTile);
  const int first_block_key = range.begin / C::kWarpKeys * C::kWarpKeys;
  const int first_key = first_block_key + warp * C::kWarpKeys;
  const int steps = range.end > range.begin ? (range.end - first_block_key + C::kBlockKeys - 1) / C::kBlockKeys : 0;

  // Lane i looks up where key i of a step lies (i % 16 if it has so many).
  const auto* keys = static_cast<const uint8_t*>(params.k) + kv_head * params.k_head_stride * sizeof(T);
  const auto* values = static_cast<const uint8_t*>(params.v) + kv_head * params.v_head_stride * sizeof(T);
  const int32_t* pages =
      params.page_table == nullptr ? nullptr : params.page_table + sequence.kv_batch * params.page_table_stride;
  const int whole_block = params.cu_seqlens_k != nullptr ? 0 : static_cast<int>(sequence.kv_batch);
  const auto slot_of_step = [&](int step) {
    const int key = first_key + step * C::kBlockKeys + lane % C::kWarpKeys;
    if (key < range.begin || key >= range.end) return KeySlot{-1, 0};
    const int position = static_cast<int>(sequence.k_start) + key;
    if (pages == nullptr) return KeySlot{whole_block, position};
    const int column =
        static_cast<int>(static_cast<uint64_t>(position) * derived.page_multiplier >> derived.page_shift);
    return KeySlot{pages[column], position - column * params.page_size};
  };
  const uint32_t ring = shared_address(shared) + warp * C::kRingBytes;
  const auto copy_step = [&](uint32_t tile, KeySlot slot) {
    const auto offset_by = [&](const CacheStrides& strides) {
      return slot.block < 0 ? 0 : slot.block * strides.batch + slot.row * strides.row;
    };
    const uint32_t valid = __ballot_sync(0xffffffffu, slot.block >= 0);
    copy_rows<C::kHeadWords, C::kWarpKeys>(tile, keys, derived.k.unit_bytes, offset_by(derived.k), valid,
                                           C::words(params.head_dim), lane);
    copy_rows<C::kHeadWordsV, C::kWarpKeys>(tile + C::kKeyBytes, values, derived.v.unit_bytes, offset_by(derived.v),
                                            valid, C::words(params.head_dim_v), lane);
  };

  // All first slots are looked up before the first copy, and each later one a step before its copies start, so that the
  // page table's latency is hidden.
  KeySlot slots[C::kStages];
#pragma unroll
  for (int step = 0; step < C::kStages; ++step) slots[step] = slot_of_step(step);
#pragma unroll
  for (int step = 0; step < C::kStages - 1; ++step) {
    if (step < steps) copy_step(ring + step * C::kSlotBytes, slots[step]);
    commit_copies();
  }
  KeySlot next_slot = slots[C::kStages - 1];

  const ScoreScale scale = score_scale_of(params, batch, kv_head);
  KeyRange visible[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + lane / 4 + 8 * r;
    visible[r] = visible_keys(params, sequence.q_len, sequence.k_len, token_of(row));
    if (row >= num_rows) visible[r] = {0, 0};
    visible[r].begin = max(visible[r].begin, range.begin);
    visible[r].end = min(visible[r].end, range.end);
  }
  // Keys that every row of the tile sees need no mask.
  const KeyRange seen_by_all = {max(seen_by_last.begin, range.begin), min(seen_by_first.end, range.end)};

  wait_for_copies<C::kStages - 1>();
  __syncthreads();
  uint32_t queries[C::kHeadDim / kMmaRows][4];
  load_queries<T, C::kHeadDim>(queries, query_tile, lane);
  __syncthreads();

  RowPair rows;
  float output[C::kHeadDimV / kMmaColumns][4] = {};
  int read_slot = 0, write_slot = C::kStages - 1;
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<C::kStages - 2>();
    __syncwarp();  // every lane's copies have landed, and the slot that is filled next has been read
    if (step + C::kStages - 1 < steps) copy_step(ring + write_slot * C::kSlotBytes, next_slot);
    commit_copies();
    next_slot = slot_of_step(step + C::kStages);
    const uint32_t key_tile = ring + read_slot * C::kSlotBytes, value_tile = key_tile + C::kKeyBytes;
    write_slot = read_slot;
    read_slot = read_slot + 1 == C::kStages ? 0 : read_slot + 1;

    float scores[C::kWarpKeys / kMmaColumns][4];
    multiply_keys<T, C::kHeadDim>(scores, queries, key_tile, lane);
    if (scale.softcap > 0.0f) {
#pragma unroll
      for (int i = 0; i < C::kWarpKeys / 2; ++i) scores[i / 4][i % 4] = cap(scores[i / 4][i % 4], scale);
    }
    const int step_key = first_key + step * C::kBlockKeys;
    if (step_key < seen_by_all.begin || step_key + C::kWarpKeys > seen_by_all.end) {
      mask_scores(scores, visible, step_key, lane);
    }
    float correction[2];
    rows.update(scores, scale.log2_per_unit, correction);
    // Once the maximum has settled there is nothing to correct.
    if (__any_sync(0xffffffffu, correction[0] != 1.0f || correction[1] != 1.0f)) {
#pragma unroll
      for (int i = 0; i < C::kHeadDimV / kMmaColumns; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) output[i][e] *= correction[e / 2];
      }
    }
    multiply_values<T, C::kHeadDimV>(output, scores, value_tile, lane);
  }

  // Each warp leaves its maxima, sums and output.
  wait_for_copies<0>();
  __syncwarp();
  rows.finish();
  auto* outputs = reinterpret_cast<float*>(shared);
  constexpr int kWarpFloats = C::kRingBytes / sizeof(float);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + 8 * r;
    if (lane % 4 == 0) {
      warp_max[warp][row] = rows.max[r];
      warp_sum[warp][row] = rows.sum[r];
    }
    store_output_row<T, C::kHeadDimV>(outputs + warp * kWarpFloats + row * C::kHeadDimV, output, r, lane);
  }
  __syncthreads();

  const auto merge_warps = [&](int row) {
    MergedRow<C> merged = {negative_infinity(), 0.0f, {}};
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) merged.max = fmaxf(merged.max, warp_max[w][row]);
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) {
      const float weight =
          merged.max == negative_infinity() ? 0.0f : exp2_approx((warp_max[w][row] - merged.max) * scale.log2_per_unit);
      merged.sum += warp_sum[w][row] * weight;
#pragma unroll
      for (int i = 0; i < C::kLanePairs; ++i) {
        const float2 part =
            *reinterpret_cast<const float2*>(outputs + w * kWarpFloats + row * C::kHeadDimV + (i * kWarp + lane) * 2);
        merged.output[i].x += part.x * weight;
        merged.output[i].y += part.y * weight;
      }
    }
    return merged;
  };

  const bool is_partial = params.num_partials > 1;
  const float value_scale = C::kIsFp8 ? params.v_descale.at(batch, kv_head) : 1.0f;
  const auto write_row = [&](int row, int partial, const MergedRow<C>& merged) {
    const PackedRow packed = unpack(first_row + row);
    const float sink = is_partial ? negative_infinity() : sink_of(params, packed.head);
    const RowEnd end = end_row(merged.max, merged.sum, scale.log2_per_unit, sink);
    if (lane == 0) {
      if (is_partial) {
        params.lse_accum[lse_accum_index(params, sequence, batch, partial, packed)] = end.lse;
      } else {
        params.lse[lse_index(params, sequence, batch, packed)] = end.lse;
      }
    }
    // combine_splits() does not look at the output of a part without keys.
    if (is_partial && end.lse == negative_infinity()) return;
    const float factor = end.factor * value_scale;
#pragma unroll
    for (int i = 0; i < C::kLanePairs; ++i) {
      const int column = (i * kWarp + lane) * 2;
      if (column >= params.head_dim_v) continue;
      const float2 total = make_float2(merged.output[i].x * factor, merged.output[i].y * factor);
      if (is_partial) {
        *reinterpret_cast<float2*>(params.out_accum + out_accum_index(params, sequence, batch, partial, packed) +
                                   column) = total;
      } else {
        *reinterpret_cast<uint32_t*>(static_cast<Out*>(params.out) + out_index(params, sequence, batch, packed) +
                                     column) = pack<Out>(total.x, total.y);
      }
    }
  };

  const int tile_rows = last_row - first_row + 1;
  if constexpr (Blocks::kMostBlocks == 1) {
    for (int row = warp; row < tile_rows; row += C::kWarps) write_row(row, split, merge_warps(row));
  } else {
    const Blocks blocks;
    // A block's rows take the place of its warp 0's, and of its statistics.
    for (int row = warp; row < tile_rows; row += C::kWarps) {
      const MergedRow<C> merged = merge_warps(row);
      __syncwarp();
      if (lane == 0) {
        warp_max[0][row] = merged.max;
        warp_sum[0][row] = merged.sum;
      }
#pragma unroll
      for (int i = 0; i < C::kLanePairs; ++i) {
        *reinterpret_cast<float2*>(outputs + row * C::kHeadDimV + (i * kWarp + lane) * 2) = merged.output[i];
      }
    }
    blocks.sync();
    for (int row = blocks.rank() + warp * blocks.count(); row < tile_rows; row += C::kWarps * blocks.count()) {
      float2 parts[Blocks::kMostBlocks][C::kLanePairs];
      const bool has_block = lane < blocks.count();
      const float max = has_block ? *blocks.of(&warp_max[0][row], lane) : negative_infinity();
      const float sum = has_block ? *blocks.of(&warp_sum[0][row], lane) : 0.0f;
#pragma unroll
      for (int b = 0; b < Blocks::kMostBlocks; ++b) {
#pragma unroll
        for (int i = 0; i < C::kLanePairs; ++i) {
          parts[b][i] = make_float2(0.0f, 0.0f);
          if (b < blocks.count()) {
            parts[b][i] =
                *blocks.of(reinterpret_cast<const float2*>(outputs + row * C::kHeadDimV + (i * kWarp + lane) * 2), b);
          }
        }
      }
      MergedRow<C> merged = {warp_reduce<Max>(max), 0.0f, {}};
      const float weight =
          merged.max == negative_infinity() ? 0.0f : exp2_approx((max - merged.max) * scale.log2_per_unit);
      merged.sum = warp_reduce<Sum>(sum * weight);
#pragma unroll
      for (int b = 0; b < Blocks::kMostBlocks; ++b) {
        const float block_weight = __shfl_sync(0xffffffffu, weight, b);
#pragma unroll
        for (int i = 0; i < C::kLanePairs; ++i) {
          merged.output[i].x += parts[b][i].x * block_weight;
          merged.output[i].y += parts[b][i].y * block_weight;
        }
      }
      // A sum is done before the barrier below, and with it the reads of other blocks' memory: also those of columns
      // that are not written.
#pragma unroll
      for (int i = 0; i < C::kLanePairs; ++i) asm volatile("" ::"f"(merged.output[i].x), "f"(merged.output[i].y));
      write_row(row, split / blocks.count(), merged);
    }
    __syncwarp();
    blocks.wait_for_readers();
  }
}

// position / page_size by a product: the multiplier is 2^shift / page_size, rounded up.
inline void set_page_division(GroupedHeadsParams& derived, int page_size) {
  if (page_size <= 0) return;
  constexpr int kPositionBits = 31;
  derived.page_shift = kPositionBits + std::bit_width(static_cast<uint32_t>(page_size - 1));
  const uint64_t power = uint64_t{1} << derived.page_shift;
  derived.page_multiplier = static_cast<uint32_t>((power + page_size - 1) / page_size);
}

// False if the cache has offsets beyond 32 bits.
inline bool set_strides(CacheStrides& strides, int64_t blocks, int64_t rows, int64_t batch_stride, int64_t row_stride,
                        int64_t element_bytes) {
  constexpr int64_t kChunkBytes = 16, kMostUnitBytes = 1 << 30;
  const int64_t batch_bytes = batch_stride * element_bytes, row_bytes = row_stride * element_bytes;
  int64_t unit = (batch_bytes | row_bytes) & -(batch_bytes | row_bytes);
  unit = unit == 0 ? kChunkBytes : std::min(unit, kMostUnitBytes);
  const int64_t last =
      std::max<int64_t>(blocks - 1, 0) * (batch_bytes / unit) + std::max<int64_t>(rows - 1, 0) * (row_bytes / unit);
  if (last > UINT32_MAX) return false;
  strides = {static_cast<uint32_t>(batch_bytes / unit), static_cast<uint32_t>(row_bytes / unit),
             static_cast<uint32_t>(unit)};
  return true;
}

template <class Blocks, class C>
Status launch_grouped_heads(const AttentionParams& params, Stream stream) {
  GroupedHeadsParams derived;
  const bool paged = params.page_table != nullptr, ragged = params.cu_seqlens_k != nullptr;
  const int64_t rows = paged ? params.page_size : ragged ? params.k_extent : params.seqlen_k;
  const int64_t cache_blocks = ragged ? 1 : params.k_extent;
  if (!set_strides(derived.k, cache_blocks, rows, params.k_batch_stride, params.k_row_stride,
                   sizeof(typename C::Source)) ||
      !set_strides(derived.v, cache_blocks, rows, params.v_batch_stride, params.v_row_stride,
                   sizeof(typename C::Source))) {
    return Unsupported("fwd: k or v is too large for its strides, expected offsets below 2^32 common divisors of them");
  }
  set_page_division(derived, paged ? params.page_size : 0);
  derived.group = params.group();
  derived.group_multiplier = 65536 / derived.group + 1;
  const int row_tiles = (params.seqlen_q * derived.group + kMmaRows - 1) / kMmaRows;  // 1 or 2
  derived.row_tiles_log2 = row_tiles - 1;
  if (static_cast<int64_t>(row_tiles) * params.num_heads_k > kMostGridY) {
    return Unsupported("fwd: k has more than 32767 heads");
  }

  constexpr int kMostBatches = kMostGridZ;
  const auto kernel = attend_grouped_heads_kernel<C, Blocks>;
  const int cluster = params.num_splits / params.num_partials;
  SGL_RETURN_IF_ERROR(allow_shared_memory("fwd", kernel, C::kShared));
  SGL_RETURN_IF_ERROR(Blocks::allow(kernel, cluster));
  for (; derived.first_batch < params.batch; derived.first_batch += kMostBatches) {
    const int batches = std::min(params.batch - derived.first_batch, kMostBatches);
    const dim3 grid(params.num_splits, params.num_heads_k << derived.row_tiles_log2, batches);
    SGL_RETURN_IF_ERROR(
        launch("fwd", kernel,
               {.grid = grid, .block = C::kThreads, .shared_bytes = C::kShared, .pdl = true, .cluster = cluster},
               stream, params, derived));
  }
  return OkStatus();
}

template <class Blocks, class T, int kHeadDim, int kHeadDimV>
Status run_grouped_heads(const AttentionParams& params, Stream stream) {
  using C = GroupedHeadsConfig<T, kHeadDim, kHeadDimV>;
  if constexpr (Blocks::kMostBlocks > 1) {
    if (params.num_splits > params.num_partials) return launch_grouped_heads<Blocks, C>(params, stream);
  }
  return launch_grouped_heads<SingleBlocks, C>(params, stream);
}

template <class Blocks, class T>
Status run_grouped_heads(const AttentionParams& params, Stream stream) {
  const int head_dim = params.head_dim, head_dim_v = params.head_dim_v;
  if (head_dim <= 64 && head_dim_v <= 64) return run_grouped_heads<Blocks, T, 64, 64>(params, stream);
  if (head_dim <= 128 && head_dim_v <= 128) return run_grouped_heads<Blocks, T, 128, 128>(params, stream);
  if (head_dim <= 192 && head_dim_v <= 128) return run_grouped_heads<Blocks, T, 192, 128>(params, stream);
  return run_grouped_heads<Blocks, T, 256, 256>(params, stream);
}

}  // namespace sgl_kernel::SGL_TARGET
