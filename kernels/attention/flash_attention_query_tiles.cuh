// Attention of many queries (prefill): bound by the tensor cores.
//
// One block a (sequence, KV head, tile of packed query rows, split of the keys); 4 warps of 16 or 32 rows each. The
// tile of Q stays in shared memory; K and V pass through two buffers each, so that the copies of the next K run during
// S = Q K^T and the softmax, and those of the next V during O += P V (FlashAttention-2, Dao 2023). Keys are gathered
// row by row from offsets that are looked up one tile ahead, so pages may have any size. Tiles at the end of a causal
// sequence see the most keys and start first.
//
// fp8 is multiplied as f16, in which it is exact: K and V arrive in a buffer of fp8, and each thread converts what it
// copied into the one f16 tile of each. The copies of the next K and V run during all of a step.
#pragma once

#include "kernels/attention/flash_attention_fragments.cuh"
#include "kernels/attention/flash_attention_portable.h"
#include "kernels/base/launch.h"
#include "kernels/device/pdl.cuh"

namespace sgl_kernel::SGL_TARGET {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;

// T: the dtype of q, k and v; kRowTiles: A fragments of 16 rows that a warp holds; kTileN: keys of a step.
template <class T, int kHeadDim_, int kHeadDimV_, int kRowTiles_, int kTileN_>
struct Config : AttentionTypes<T> {
  static constexpr bool kIsFp8 = AttentionTypes<T>::kIsFp8;
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_, kRowTiles = kRowTiles_, kTileN = kTileN_;
  static constexpr int kWarpRows = kRowTiles * kMmaRows, kTileM = kWarps * kWarpRows;
  static constexpr int kQueryBytes = kTileM * kHeadDim * 2;
  static constexpr int kKeyBytes = kTileN * kHeadDim * 2, kValueBytes = kTileN * kHeadDimV * 2;
  static constexpr int kBuffers = kIsFp8 ? 1 : 2;
  static constexpr int kFp8Bytes = kIsFp8 ? kTileN * (kHeadDim + kHeadDimV) : 0;
  static constexpr int kShared = kQueryBytes + kBuffers * (kKeyBytes + kValueBytes) + kFp8Bytes;
  static_assert(kTileN <= kThreads / 2, "half of the threads look up keys, half values");
  static_assert(kShared <= 97 * 1024, "an sm_89 or sm_120 block has 99 KiB, of which the offsets take some");
};

constexpr int kFp8Chunk = 16;  // elements in the 16 bytes of one asynchronous copy

// What thread threadIdx.x copies and converts of kRows rows: calls visit(row, chunk, index) for its chunks of 16.
template <int kDim, int kRows, class Visit>
__device__ __forceinline__ void for_fp8_chunks(Visit visit) {
  constexpr int kChunks = kDim / kFp8Chunk;
  static_assert(kRows * kChunks % kThreads == 0);
#pragma unroll
  for (int i = 0; i < kRows * kChunks / kThreads; ++i) {
    const int index = i * kThreads + threadIdx.x;
    visit(index / kChunks, index % kChunks, index);
  }
}

// Stores a chunk of 16 as f16: two chunks of the tile. Every other four threads begin with the second one, so that
// eight threads meet all banks.
template <int kDim>
__device__ __forceinline__ void store_as_half(uint32_t tile, int row, int chunk, uint4 fp8) {
  const HalfPairs pairs[4] = {half_of_e4m3(fp8.x), half_of_e4m3(fp8.y), half_of_e4m3(fp8.z), half_of_e4m3(fp8.w)};
  const bool flip = chunk / 4 % 2 != 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool second = flip != (half != 0);
    const HalfPairs a = second ? pairs[2] : pairs[0], b = second ? pairs[3] : pairs[1];
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(tile + swizzled<kDim>(row, 2 * chunk + second)),
                 "r"(a.first), "r"(a.second), "r"(b.first), "r"(b.second)
                 : "memory");
  }
}

// Copies kRows rows of fp8 to `buffer`, one behind another.
template <int kDim, int kRows>
__device__ __forceinline__ void copy_fp8_rows(uint32_t buffer, const __nv_fp8_e4m3* base, const int64_t* offsets,
                                              int dim) {
  for_fp8_chunks<kDim, kRows>([&](int row, int chunk, int index) {
    const int64_t from = offsets[row];
    const bool valid = from != kNoRow && chunk * kFp8Chunk < dim;
    copy_chunk_async(buffer + index * 16, valid ? base + from + chunk * kFp8Chunk : base, valid);
  });
}

// Converts what this thread copied into a tile of f16.
template <int kDim, int kRows>
__device__ __forceinline__ void convert_fp8_rows(uint32_t tile, uint32_t buffer) {
  for_fp8_chunks<kDim, kRows>([&](int row, int chunk, int index) {
    uint4 fp8;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fp8.x), "=r"(fp8.y), "=r"(fp8.z), "=r"(fp8.w)
                 : "r"(buffer + index * 16)
                 : "memory");
    store_as_half<kDim>(tile, row, chunk, fp8);
  });
}

// Rows of fp8 straight from memory into a tile of f16.
template <int kDim, int kRows>
__device__ __forceinline__ void load_fp8_rows(uint32_t tile, const __nv_fp8_e4m3* base, const int64_t* offsets,
                                              int dim) {
  for_fp8_chunks<kDim, kRows>([&](int row, int chunk, int /*index*/) {
    const int64_t from = offsets[row];
    const bool valid = from != kNoRow && chunk * kFp8Chunk < dim;
    const uint4 zeros = {0, 0, 0, 0};
    store_as_half<kDim>(tile, row, chunk,
                        valid ? *reinterpret_cast<const uint4*>(base + from + chunk * kFp8Chunk) : zeros);
  });
}

template <class C>
__global__ void __launch_bounds__(kThreads)
    attend_query_tiles_kernel(const __grid_constant__ AttentionParams params, int row_tiles) {
  using T = typename C::Element;
  using Source = typename C::Source;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ int64_t query_offsets[C::kTileM];
  __shared__ int64_t key_offsets[2][2][C::kTileN];  // by tile parity, for k and v
  __shared__ KeyRange row_ranges[C::kTileM];
  wait_for_predecessor();
  release_successors();

  // The row tile runs fastest over the grid, backwards; then the split, the KV head and the sequence.
  int index = blockIdx.x;
  const int first_row = (row_tiles - 1 - index % row_tiles) * C::kTileM;
  index /= row_tiles;
  const int split = index % params.num_splits;
  index /= params.num_splits;
  const int kv_head = index % params.num_heads_k, batch = index / params.num_heads_k;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int group = params.group();

  const AttentionSequence sequence = sequence_of(params, batch);
  const int num_rows = sequence.q_len * group;
  if (first_row >= num_rows) return;
  const int last_row = min(first_row + C::kTileM, num_rows) - 1;
  const KeyRange first_seen = visible_keys(params, sequence.q_len, sequence.k_len, first_row / group);
  const KeyRange last_seen = visible_keys(params, sequence.q_len, sequence.k_len, last_row / group);
  const KeyRange range = split_of({first_seen.begin, last_seen.end}, split, params.num_splits, kSplitTile);
  const int first_key = range.begin / C::kTileN * C::kTileN;
  const int steps = range.end > range.begin ? (range.end - first_key + C::kTileN - 1) / C::kTileN : 0;

  // Thread i < 64 looks up key i of a tile for k, thread 64 + i for v.
  const bool of_values = threadIdx.x >= kThreads / 2;
  const int looked_up = threadIdx.x % (kThreads / 2);
  const int64_t batch_stride = of_values ? params.v_batch_stride : params.k_batch_stride;
  const int64_t row_stride = of_values ? params.v_row_stride : params.k_row_stride;
  const auto slot_of_step = [&](int step) {
    const int key = first_key + step * C::kTileN + looked_up;
    const bool wanted = looked_up < C::kTileN && key >= range.begin && key < range.end;
    return wanted ? key_slot(params, sequence, key) : KeySlot{-1, 0};
  };
  const auto store_offset = [&](int step, KeySlot slot) {
    if (looked_up >= C::kTileN) return;
    key_offsets[step % 2][of_values][looked_up] = slot.block < 0 ? kNoRow : slot_offset(slot, batch_stride, row_stride);
  };

  const uint32_t query_tile = shared_address(shared);
  const uint32_t key_tiles = query_tile + C::kQueryBytes, value_tiles = key_tiles + C::kBuffers * C::kKeyBytes;
  const uint32_t fp8_keys = value_tiles + C::kBuffers * C::kValueBytes, fp8_values = fp8_keys + C::kKeyBytes / 2;
  const auto* keys = static_cast<const Source*>(params.k) + kv_head * params.k_head_stride;
  const auto* values = static_cast<const Source*>(params.v) + kv_head * params.v_head_stride;
  const auto copy_key_tile = [&](int step) {
    if constexpr (C::kIsFp8) {
      copy_fp8_rows<C::kHeadDim, C::kTileN>(fp8_keys, keys, key_offsets[step % 2][0], params.head_dim);
    } else {
      copy_rows<T, kThreads, C::kHeadDim, C::kTileN>(key_tiles + step % 2 * C::kKeyBytes, keys,
                                                     key_offsets[step % 2][0], params.head_dim);
    }
  };
  const auto copy_value_tile = [&](int step) {
    if constexpr (C::kIsFp8) {
      copy_fp8_rows<C::kHeadDimV, C::kTileN>(fp8_values, values, key_offsets[step % 2][1], params.head_dim_v);
    } else {
      copy_rows<T, kThreads, C::kHeadDimV, C::kTileN>(value_tiles + step % 2 * C::kValueBytes, values,
                                                      key_offsets[step % 2][1], params.head_dim_v);
    }
  };

  for (int i = threadIdx.x; i < C::kTileM; i += kThreads) {
    const int row = first_row + i;
    const PackedRow packed = unpack_row(row, group, kv_head);
    query_offsets[i] = row >= num_rows
                           ? kNoRow
                           : batch * params.q_batch_stride + (sequence.q_start + packed.token) * params.q_row_stride +
                                 packed.head * params.q_head_stride;
    KeyRange visible = {0, 0};
    if (row < num_rows) visible = visible_keys(params, sequence.q_len, sequence.k_len, packed.token);
    row_ranges[i] = {max(visible.begin, range.begin), min(visible.end, range.end)};
  }
  store_offset(0, slot_of_step(0));
  store_offset(1, slot_of_step(1));
  __syncthreads();
  if (steps > 0) {
    const auto* q = static_cast<const Source*>(params.q);
    if constexpr (C::kIsFp8) {
      load_fp8_rows<C::kHeadDim, C::kTileM>(query_tile, q, query_offsets, params.head_dim);
    } else {
      copy_rows<T, kThreads, C::kHeadDim, C::kTileM>(query_tile, q, query_offsets, params.head_dim);
    }
    copy_key_tile(0);
    commit_copies();
    copy_value_tile(0);
    commit_copies();
  }

  const ScoreScale scale = score_scale_of(params, batch, kv_head);
  RowPair rows[C::kRowTiles];
  float output[C::kRowTiles][C::kHeadDimV / kMmaColumns][4] = {};
  for (int step = 0; step < steps; ++step) {
    if constexpr (C::kIsFp8) {
      wait_for_copies<0>();  // of this thread, which converts no others
      __syncthreads();       // nobody reads the tiles of the last step any more
      convert_fp8_rows<C::kHeadDim, C::kTileN>(key_tiles, fp8_keys);
      convert_fp8_rows<C::kHeadDimV, C::kTileN>(value_tiles, fp8_values);
      __syncthreads();  // the tiles are there for all
      if (step + 1 < steps) copy_value_tile(step + 1);
    } else {
      wait_for_copies<1>();  // all but this step's V
      __syncthreads();       // K is there for all, and nobody reads the other K buffer any more
    }
    if (step + 1 < steps) copy_key_tile(step + 1);
    commit_copies();
    const KeySlot ahead = slot_of_step(step + 2);

    const uint32_t key_tile = key_tiles + step % C::kBuffers * C::kKeyBytes;
    float scores[C::kRowTiles][C::kTileN / kMmaColumns][4] = {};
#pragma unroll
    for (int depth = 0; depth < C::kHeadDim / kMmaRows; ++depth) {
      uint32_t a[C::kRowTiles][4];
#pragma unroll
      for (int m = 0; m < C::kRowTiles; ++m) {
        load_a<C::kHeadDim>(a[m], query_tile, warp * C::kWarpRows + m * kMmaRows, depth, lane);
      }
#pragma unroll
      for (int n = 0; n < C::kTileN / 16; ++n) {
        uint32_t b[4];
        load_b_of_keys<C::kHeadDim>(b, key_tile, n * 16, depth, lane);
#pragma unroll
        for (int m = 0; m < C::kRowTiles; ++m) {
          mma<T>(scores[m][2 * n], a[m], b[0], b[1]);
          mma<T>(scores[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
    if (scale.softcap > 0.0f) {
#pragma unroll
      for (int m = 0; m < C::kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < C::kTileN / 2; ++i) scores[m][i / 4][i % 4] = cap(scores[m][i / 4][i % 4], scale);
      }
    }
    // Only a tile that crosses a diagonal or an end of the range needs the mask. Both ends grow with the row: the last
    // row's begin and the first row's end bound the keys that all rows see. Rows behind the last one see nothing.
    const int tile_begin = first_key + step * C::kTileN;
    const bool all_visible =
        tile_begin >= max(last_seen.begin, range.begin) && tile_begin + C::kTileN <= min(first_seen.end, range.end);
#pragma unroll
    for (int m = 0; m < C::kRowTiles; ++m) {
      if (!all_visible) {
        const int row = warp * C::kWarpRows + m * kMmaRows + lane / 4;
        const KeyRange visible[2] = {row_ranges[row], row_ranges[row + 8]};
        mask_scores(scores[m], visible, tile_begin, lane);
      }
      float correction[2];
      rows[m].update(scores[m], scale.log2_per_unit, correction);
#pragma unroll
      for (int i = 0; i < C::kHeadDimV / kMmaColumns; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) output[m][i][e] *= correction[e / 2];
      }
    }
    store_offset(step + 2, ahead);  // this tile's own offsets have been used

    if constexpr (!C::kIsFp8) {
      wait_for_copies<1>();  // all but the next K
      __syncthreads();       // V is there for all, and nobody reads the other V buffer any more
      if (step + 1 < steps) copy_value_tile(step + 1);
      commit_copies();
    }

    const uint32_t value_tile = value_tiles + step % C::kBuffers * C::kValueBytes;
#pragma unroll
    for (int n = 0; n < C::kTileN / 16; ++n) {
      uint32_t p[C::kRowTiles][4];
#pragma unroll
      for (int m = 0; m < C::kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float (&pair)[4] = scores[m][2 * n + i / 2];
          p[m][i] = pack<T>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int column = 0; column < C::kHeadDimV / kMmaRows; ++column) {
        uint32_t b[4];
        load_b_of_values<C::kHeadDimV>(b, value_tile, n * 16, column, lane);
#pragma unroll
        for (int m = 0; m < C::kRowTiles; ++m) {
          mma<T>(output[m][2 * column], p[m], b[0], b[1]);
          mma<T>(output[m][2 * column + 1], p[m], b[2], b[3]);
        }
      }
    }
  }
  wait_for_copies<0>();

  const bool partial = params.num_splits > 1;
  const float value_scale = C::kIsFp8 ? params.v_descale.at(batch, kv_head) : 1.0f;
#pragma unroll
  for (int m = 0; m < C::kRowTiles; ++m) {
    rows[m].finish();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + warp * C::kWarpRows + m * kMmaRows + lane / 4 + 8 * r;
      if (row >= num_rows) continue;
      const PackedRow packed = unpack_row(row, group, kv_head);
      const float sink = partial ? negative_infinity() : sink_of(params, packed.head);
      const RowEnd end = end_row(rows[m].max[r], rows[m].sum[r], scale.log2_per_unit, sink);
      if (lane % 4 == 0) {
        if (partial) {
          params.lse_accum[lse_accum_index(params, sequence, batch, split, packed)] = end.lse;
        } else {
          params.lse[lse_index(params, sequence, batch, packed)] = end.lse;
        }
      }
      // combine_splits() does not look at the output of a split without keys.
      if (partial && end.lse == negative_infinity()) continue;
      const float factor = end.factor * value_scale;
      const int64_t target = partial ? out_accum_index(params, sequence, batch, split, packed)
                                     : out_index(params, sequence, batch, packed);
#pragma unroll
      for (int i = 0; i < C::kHeadDimV / kMmaColumns; ++i) {
        const int column = i * kMmaColumns + lane % 4 * 2;
        if (column >= params.head_dim_v) continue;
        const float first = output[m][i][2 * r] * factor, second = output[m][i][2 * r + 1] * factor;
        if (partial) {
          *reinterpret_cast<float2*>(params.out_accum + target + column) = make_float2(first, second);
        } else {
          using Out = typename C::Out;
          *reinterpret_cast<uint32_t*>(static_cast<Out*>(params.out) + target + column) = pack<Out>(first, second);
        }
      }
    }
  }
}

template <class T, int kHeadDim, int kHeadDimV, int kRowTiles, int kTileN>
Status run(const AttentionParams& params, Stream stream) {
  using C = Config<T, kHeadDim, kHeadDimV, kRowTiles, kTileN>;
  const auto kernel = attend_query_tiles_kernel<C>;
  const int64_t row_tiles = (static_cast<int64_t>(params.seqlen_q) * params.group() + C::kTileM - 1) / C::kTileM;
  const int64_t blocks = row_tiles * params.num_splits * params.num_heads_k * params.batch;
  if (blocks > INT32_MAX) return Unsupported("fwd: batch * heads * query tiles * num_splits is above 2^31 blocks");
  SGL_RETURN_IF_ERROR(allow_shared_memory("fwd", kernel, C::kShared));
  return launch(
      "fwd", kernel,
      {.grid = dim3(static_cast<unsigned>(blocks)), .block = kThreads, .shared_bytes = C::kShared, .pdl = true}, stream,
      params, static_cast<int>(row_tiles));
}

}  // namespace
}  // namespace sgl_kernel::SGL_TARGET
