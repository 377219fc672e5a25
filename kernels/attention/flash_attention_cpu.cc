// Attention on the CPU: a softmax in f32 over blocks of 64 keys, whose results are merged in the order of the blocks.
//
// A piece of work is a tile of query rows that share a KV head (rows are numbered token * group + head): decoding, all
// heads that share it. Keys and values are read where they lie, once for three rows, and converted on the way. With
// fewer tiles than keep the threads busy, a piece is one block of a tile, and the merging follows: the same additions
// in the same order. Blocks begin at multiples of 64 keys and masked keys add exactly 0, so a row's bits depend on its
// own sequence alone. num_splits is not used. With queries over v, a score is the sum of two products.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention/flash_attention_loops_cpu.h"
#include "kernels/attention/flash_attention_params.h"
#include "kernels/base/cpu_dtype_switch.h"
#include "kernels/base/dispatch.h"
#include "kernels/base/parallel.h"

namespace sgl_kernel::cpu {
namespace {

constexpr int kTileRows = 6 * kRowsAtOnce;
constexpr int kMaxValues = kMostWideValues;
static_assert(kMaxQueryDim >= kMostHeadDimWithWide + kMostWideValues);
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// Products that are worth a thread of their own: some 5 µs of work.
constexpr int64_t kProductsPerThread = 1 << 16;

// States that the caller of parallel_for() has on its stack for pieces that are blocks: 96 KiB.
constexpr int64_t kSplitFloats = 24 * 1024;

// A row's result over some keys, in floats: the largest score, the sum of exp(score - largest), and the values' sum
// weighted with those, from kOutput on. A sum of 0: no keys.
constexpr int kMax = 0, kSum = 1, kOutput = 2;

int state_size(const AttentionParams& params) { return kOutput + params.head_dim_v; }

void clear_state(float* state, int num_values) {
  state[kMax] = kNegativeInfinity;
  state[kSum] = 0.0f;
  std::fill_n(state + kOutput, num_values, 0.0f);
}

// Where query row `token` of a head lies, for a tensor with these strides.
int64_t row_offset(const AttentionSequence& sequence, int batch, int token, int head, int64_t batch_stride,
                   int64_t row_stride, int64_t head_stride) {
  return batch * batch_stride + (sequence.q_start + token) * row_stride + head * head_stride;
}

// Query rows [first_row, first_row + count) of a KV head, and the keys that they see.
struct Tile {
  AttentionSequence sequence;
  int batch, kv_head, first_row, count, group;
  KeyRange visible[kTileRows];  // of each row
  int begin, end;               // of all together

  Tile(const AttentionParams& params, int64_t batch_, int64_t kv_head_, int64_t first_row_, int most)
      : sequence(sequence_of(params, static_cast<int>(batch_))),
        batch(static_cast<int>(batch_)),
        kv_head(static_cast<int>(kv_head_)),
        first_row(static_cast<int>(first_row_)),
        group(params.group()) {
    count = static_cast<int>(std::clamp<int64_t>(static_cast<int64_t>(sequence.q_len) * group - first_row, 0, most));
    for (int i = 0; i < count; ++i) visible[i] = visible_keys(params, sequence.q_len, sequence.k_len, token(i));
    begin = count > 0 ? visible[0].begin : 0;
    end = count > 0 ? visible[count - 1].end : 0;
  }

  int token(int i) const { return (first_row + i) / group; }
  int head(int i) const { return kv_head * group + (first_row + i) % group; }

  int64_t offset(int i, int64_t batch_stride, int64_t row_stride, int64_t head_stride) const {
    return row_offset(sequence, batch, token(i), head(i), batch_stride, row_stride, head_stride);
  }
};

// What a thread needs for a tile.
template <class T>
struct Workspace {
  alignas(32) float queries[kTileRows][kMaxQueryDim];  // [q, q_v]
  alignas(32) float scores[kRowsAtOnce][kBlockKeys];
  alignas(32) float value_scores[kRowsAtOnce][kBlockKeys];  // q_v's
  // Of the block's keys. What no row sees stands for a key that some row sees.
  const T* keys[kBlockKeys];
  const T* values[kBlockKeys];
};

template <class T, class Loops>
void load_queries(const AttentionParams& params, const Tile& tile, Workspace<T>& work) {
  for (int i = 0; i < tile.count; ++i) {
    const int64_t offset = tile.offset(i, params.q_batch_stride, params.q_row_stride, params.q_head_stride);
    Loops::to_float(work.queries[i], static_cast<const T*>(params.q) + offset, params.head_dim);
    if (params.q_v == nullptr) continue;
    const int64_t v_offset = tile.offset(i, params.q_v_batch_stride, params.q_v_row_stride, params.q_v_head_stride);
    Loops::to_float(work.queries[i] + params.head_dim, static_cast<const T*>(params.q_v) + v_offset, params.head_dim_v);
  }
}

// The states of rows [first, first + kRows) of the tile over the keys of a block.
template <class T, class Loops, int kRows>
void attend_rows(const AttentionParams& params, const Tile& tile, int first, int block, float* states,
                 Workspace<T>& work) {
  const int begin = std::max(tile.visible[first].begin - block, 0);
  const int end = std::min(tile.visible[first + kRows - 1].end - block, kBlockKeys);
  if (end <= begin) {
    for (int r = 0; r < kRows; ++r) clear_state(states + r * state_size(params), params.head_dim_v);
    return;
  }
  const int vectors_begin = begin / 8 * 8, vectors_end = (end + 7) / 8 * 8;
  const float scale = params.score_scale(tile.batch, tile.kv_head);
  Loops::template scores<kRows>(work.scores, work.queries[first], work.keys, vectors_begin, vectors_end, scale,
                                params.head_dim);
  if (params.q_v != nullptr) {
    Loops::template scores<kRows>(work.value_scores, work.queries[first] + params.head_dim, work.values, vectors_begin,
                                  vectors_end, scale, params.head_dim_v);
    for (int r = 0; r < kRows; ++r) {
      for (int j = vectors_begin; j < vectors_end; ++j) work.scores[r][j] += work.value_scores[r][j];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float* scores = work.scores[r];
    float* state = states + r * state_size(params);
    if (params.softcap > 0.0f) {
      for (int j = begin; j < end; ++j) scores[j] = params.softcap * std::tanh(scores[j] / params.softcap);
    }
    const KeyRange visible = tile.visible[first + r];
    const int hidden_end = std::clamp(visible.begin - block, vectors_begin, vectors_end);
    const int hidden_begin = std::clamp(visible.end - block, vectors_begin, vectors_end);
    std::fill(scores + vectors_begin, scores + hidden_end, kNegativeInfinity);
    std::fill(scores + hidden_begin, scores + vectors_end, kNegativeInfinity);
    state[kMax] = Loops::largest(scores, vectors_begin, vectors_end, kNegativeInfinity);
    const float shift = state[kMax] == kNegativeInfinity ? 0.0f : state[kMax];
    state[kSum] = Loops::exponentials(scores, vectors_begin, vectors_end, shift);
  }
  Loops::template weighted_sums<kRows>(states + kOutput, state_size(params), work.scores, work.values, begin, end,
                                       params.head_dim_v);
}

// The states of the tile's rows over the keys of the block that begins at key `block`.
template <class T, class Loops>
void attend_block(const AttentionParams& params, const Tile& tile, int block, float* states, Workspace<T>& work) {
  if (block >= tile.end || block + kBlockKeys <= tile.begin || tile.begin >= tile.end) {
    for (int i = 0; i < tile.count; ++i) clear_state(states + i * state_size(params), params.head_dim_v);
    return;
  }
  const T* keys = static_cast<const T*>(params.k) + tile.kv_head * params.k_head_stride;
  const T* values = static_cast<const T*>(params.v) + tile.kv_head * params.v_head_stride;
  for (int j = 0; j < kBlockKeys; ++j) {
    const KeySlot slot = key_slot(params, tile.sequence, std::clamp(block + j, tile.begin, tile.end - 1));
    work.keys[j] = keys + slot_offset(slot, params.k_batch_stride, params.k_row_stride);
    work.values[j] = values + slot_offset(slot, params.v_batch_stride, params.v_row_stride);
    Loops::prefetch_row(work.keys[j], params.head_dim);
    Loops::prefetch_row(work.values[j], params.head_dim_v);
  }
  for (int i = 0; i < tile.count; i += kRowsAtOnce) {
    float* rows = states + i * state_size(params);
    switch (std::min(tile.count - i, kRowsAtOnce)) {
      case 1:
        attend_rows<T, Loops, 1>(params, tile, i, block, rows, work);
        break;
      case 2:
        attend_rows<T, Loops, 2>(params, tile, i, block, rows, work);
        break;
      default:
        attend_rows<T, Loops, kRowsAtOnce>(params, tile, i, block, rows, work);
    }
  }
}

// Adds a row's state over the next block to its state over those before.
template <class Loops>
void merge_next(float* state, const float* next, int num_values) {
  if (next[kSum] == 0.0f) return;
  const float max = std::max(state[kMax], next[kMax]);
  const float shift = max == kNegativeInfinity ? 0.0f : max;
  const float factor = std::exp(state[kMax] - shift), next_factor = std::exp(next[kMax] - shift);
  state[kMax] = max;
  state[kSum] = state[kSum] * factor + next[kSum] * next_factor;
  Loops::add_scaled(state + kOutput, factor, next + kOutput, next_factor, num_values);
}

float sink_of(const AttentionParams& params, int head) {
  if (params.sinks == nullptr) return kNegativeInfinity;
  SGL_CPU_SWITCH_FLOAT(params.sinks_dtype, T, return static_cast<float>(static_cast<const T*>(params.sinks)[head]));
}

// Writes the results of the tile's rows from their states over all keys.
template <class Out, class Loops>
void write_rows(const AttentionParams& params, const Tile& tile, const float* states) {
  for (int i = 0; i < tile.count; ++i) {
    const float* state = states + i * state_size(params);
    const int head = tile.head(i);
    const float sink = sink_of(params, head);
    const float top = std::max(state[kMax], sink);
    float factor = 0.0f, lse = kNegativeInfinity;
    if (top != kNegativeInfinity) {
      const float scaled = std::exp(state[kMax] - top);
      const float total = state[kSum] * scaled + std::exp(sink - top);
      factor = scaled / total;
      lse = top + std::log(total);
    }
    params.lse[tile.offset(i, params.lse_batch_stride, /*row_stride=*/1, params.lse_head_stride)] = lse;
    const int64_t offset = tile.offset(i, params.out_batch_stride, params.out_row_stride, params.out_head_stride);
    Loops::from_float(static_cast<Out*>(params.out) + offset, state + kOutput,
                      factor * params.v_descale.at(tile.batch, tile.kv_head), params.head_dim_v);
  }
}

// How the rows of all sequences are cut into tiles. Tiles with the most keys are at the end of a causal sequence: the
// KV head and the sequence run fastest and both ends take turns, so that contiguous ranges see many keys and few.
struct Tiling {
  int rows;  // of a tile
  int64_t tiles, heads;

  explicit Tiling(const AttentionParams& params) {
    const int64_t all_rows = static_cast<int64_t>(params.seqlen_q) * params.group();
    heads = static_cast<int64_t>(params.num_heads_k) * params.batch;
    rows = static_cast<int>(std::min<int64_t>(all_rows, kTileRows));
    if (all_rows > kTileRows) {  // so small that every thread gets several: sequences differ in length
      const int64_t wanted = all_rows * heads / (4 * kRowsAtOnce * num_threads()) * kRowsAtOnce;
      rows = static_cast<int>(std::clamp<int64_t>(wanted, kRowsAtOnce, kTileRows));
    }
    tiles = (all_rows + rows - 1) / rows;
  }

  int64_t count() const { return tiles * heads; }

  Tile tile(const AttentionParams& params, int64_t i) const {
    const int64_t place = i % heads, row_tile = i / heads;
    const int64_t turn = row_tile % 2 == 0 ? row_tile / 2 : tiles - 1 - row_tile / 2;
    return Tile(params, place / params.num_heads_k, place % params.num_heads_k, turn * rows, rows);
  }
};

template <class T, class Out, class Loops>
void attend_tiles(const AttentionParams& params, const Tiling& tiling) {
  const int64_t products = static_cast<int64_t>(tiling.rows) * params.seqlen_k * (params.head_dim + params.head_dim_v);
  const int64_t grain = (kProductsPerThread + products - 1) / std::max<int64_t>(products, 1);
  parallel_for(tiling.count(), std::max<int64_t>(grain, 1), [&](int64_t begin, int64_t end) {
    Workspace<T> work;
    float states[2][kTileRows * (kOutput + kMaxValues)];
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiling.tile(params, i);
      load_queries<T, Loops>(params, tile, work);
      for (int row = 0; row < tile.count; ++row) {
        clear_state(states[0] + row * state_size(params), params.head_dim_v);
      }
      for (int block = tile.begin / kBlockKeys * kBlockKeys; block < tile.end; block += kBlockKeys) {
        attend_block<T, Loops>(params, tile, block, states[1], work);
        for (int row = 0; row < tile.count; ++row) {
          const int at = row * state_size(params);
          merge_next<Loops>(states[0] + at, states[1] + at, params.head_dim_v);
        }
      }
      write_rows<Out, Loops>(params, tile, states[0]);
    }
  });
}

// The same for few tiles of many keys: threads share the blocks of a tile, `at_once` of each tile at a time.
template <class T, class Out, class Loops>
void attend_tile_blocks(const AttentionParams& params, const Tiling& tiling, int first_block, int end_block,
                        int at_once) {
  const int64_t tile_states = static_cast<int64_t>(tiling.rows) * state_size(params);
  float states[kSplitFloats];  // [tiles][1 + at_once]: over all blocks so far, and over each of the next ones
  const auto states_of = [&](int64_t tile, int slot) { return states + (tile * (1 + at_once) + slot) * tile_states; };
  for (int64_t i = 0; i < tiling.count() * tiling.rows; ++i) {
    clear_state(states_of(i / tiling.rows, 0) + i % tiling.rows * state_size(params), params.head_dim_v);
  }
  for (int block = first_block; block < end_block; block += at_once) {
    const int count = std::min(at_once, end_block - block);
    const int64_t products = static_cast<int64_t>(tiling.rows) * kBlockKeys * (params.head_dim + params.head_dim_v);
    const int64_t grain = (kProductsPerThread + products - 1) / products;
    parallel_for(tiling.count() * count, grain, [&](int64_t begin, int64_t end) {
      Workspace<T> work;
      for (int64_t i = begin; i < end; ++i) {  // KV heads run fastest: a key's heads lie side by side
        const int64_t place = i % tiling.count();
        const int slot = static_cast<int>(i / tiling.count());
        const Tile tile = tiling.tile(params, place);
        load_queries<T, Loops>(params, tile, work);
        attend_block<T, Loops>(params, tile, (block + slot) * kBlockKeys, states_of(place, 1 + slot), work);
      }
    });
    for (int64_t i = 0; i < tiling.count(); ++i) {
      const int rows = tiling.tile(params, i).count;
      for (int row = 0; row < rows; ++row) {
        const int at = row * state_size(params);
        for (int slot = 1; slot <= count; ++slot) {
          merge_next<Loops>(states_of(i, 0) + at, states_of(i, slot) + at, params.head_dim_v);
        }
      }
    }
  }
  for (int64_t i = 0; i < tiling.count(); ++i) {
    write_rows<Out, Loops>(params, tiling.tile(params, i), states_of(i, 0));
  }
}

template <class T, class Out, class Loops>
void attend(const AttentionParams& params) {
  const Tiling tiling(params);
  const int64_t most_at_once = kSplitFloats / (tiling.count() * tiling.rows * state_size(params)) - 1;
  if (tiling.count() < 4 * num_threads() && num_threads() > 1 && most_at_once > 1) {
    int first_key = std::numeric_limits<int>::max(), end_key = 0;
    for (int64_t i = 0; i < tiling.count(); ++i) {
      const Tile tile = tiling.tile(params, i);
      if (tile.begin >= tile.end) continue;
      first_key = std::min(first_key, tile.begin);
      end_key = std::max(end_key, tile.end);
    }
    const int first_block = first_key / kBlockKeys, end_block = (end_key + kBlockKeys - 1) / kBlockKeys;
    if (end_block - first_block > 1) {
      const int at_once = static_cast<int>(std::min<int64_t>(most_at_once, end_block - first_block));
      attend_tile_blocks<T, Out, Loops>(params, tiling, first_block, end_block, at_once);
      return;
    }
  }
  attend_tiles<T, Out, Loops>(params, tiling);
}

// A row of `dim` elements, the first rotary_dim of them rotated by the angles of `position`.
//   interleaved: pairs (2 i, 2 i + 1), else (i, i + rotary_dim / 2), i < rotary_dim / 2
template <class T>
void rotate_row(T* target, const T* source, int dim, int64_t position, const AttentionParams& params) {
  const int pairs = params.rotary_dim / 2;
  const T* cosines = static_cast<const T*>(params.rotary_cos) + position * pairs;
  const T* sines = static_cast<const T*>(params.rotary_sin) + position * pairs;
  for (int i = 0; i < pairs; ++i) {
    const int first = params.rotary_interleaved ? 2 * i : i;
    const int second = params.rotary_interleaved ? 2 * i + 1 : i + pairs;
    const float x = source[first], y = source[second], cosine = cosines[i], sine = sines[i];
    target[first] = T(x * cosine - y * sine);
    target[second] = T(x * sine + y * cosine);
  }
  std::copy(source + params.rotary_dim, source + dim, target + params.rotary_dim);
}

template <class T>
void append_new_keys(const AttentionParams& params) {
  for (int batch = 0; batch < params.batch; ++batch) {
    const AttentionSequence sequence = sequence_of(params, batch);
    const int cached = sequence.k_len - sequence.k_new_len;
    const int64_t first_position = first_rotary_position(params, sequence, batch);
    for (int token = 0; token < sequence.k_new_len; ++token) {
      const KeySlot slot = key_slot(params, sequence, cached + token);
      for (int head = 0; head < params.num_heads_k; ++head) {
        const T* k_source = static_cast<const T*>(params.k_new) + batch * params.k_new_batch_stride +
                            (sequence.k_new_start + token) * params.k_new_row_stride + head * params.k_new_head_stride;
        const T* v_source = static_cast<const T*>(params.v_new) + batch * params.v_new_batch_stride +
                            (sequence.k_new_start + token) * params.v_new_row_stride + head * params.v_new_head_stride;
        T* k_target = static_cast<T*>(const_cast<void*>(params.k)) +
                      slot_offset(slot, params.k_batch_stride, params.k_row_stride) + head * params.k_head_stride;
        T* v_target = static_cast<T*>(const_cast<void*>(params.v)) +
                      slot_offset(slot, params.v_batch_stride, params.v_row_stride) + head * params.v_head_stride;
        rotate_row(k_target, k_source, params.head_dim, clamp_rotary_position(params, first_position + token), params);
        std::copy_n(v_source, params.head_dim_v, v_target);
      }
    }
    if (params.rotary_dim == 0) continue;
    const AttentionParams rotated = with_rotated_queries(params);
    for (int token = 0; token < sequence.q_len; ++token) {
      const int64_t position = first_position + (params.rotate_q_by_row ? token : 0);
      for (int head = 0; head < params.num_heads; ++head) {
        rotate_row(static_cast<T*>(params.rotated_q) + row_offset(sequence, batch, token, head, rotated.q_batch_stride,
                                                                  rotated.q_row_stride, rotated.q_head_stride),
                   static_cast<const T*>(params.q) + row_offset(sequence, batch, token, head, params.q_batch_stride,
                                                                params.q_row_stride, params.q_head_stride),
                   params.head_dim, clamp_rotary_position(params, position), params);
      }
    }
  }
}

template <class T, class Out>
void run(const AttentionParams& params) {
  if (params.k_new != nullptr) append_new_keys<T>(params);
  const AttentionParams attended = with_rotated_queries(params);
#if defined(__x86_64__)
  if (has_avx2()) return attend<T, Out, Avx2Loops>(attended);
#endif
  attend<T, Out, PlainLoops>(attended);
}

}  // namespace

Status flash_attention_most_merged_splits(int* most) {
  *most = 1;
  return OkStatus();
}

Status flash_attention_forward(const AttentionParams& params, Stream) {
  if (params.dtype == DType::kF8E4M3) {
    run<Float8E4M3, BFloat16>(params);
  } else {
    SGL_CPU_SWITCH_FLOAT(params.dtype, T, run<T, T>(params));
  }
  return OkStatus();
}

}  // namespace sgl_kernel::cpu
