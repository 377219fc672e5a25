// What every target of flash_attention gets: the checked arguments of fwd() as pointers, strides and numbers.
//
// A target defines flash_attention_most_merged_splits() and flash_attention_forward(), which does, in this order:
//   1. if k_new: rotate the new keys and the queries, write the new keys and values into the cache;
//   2. attend; with num_partials > 1 that many partial results and their LSEs are left in out_accum and lse_accum, one
//      of every num_splits / num_partials splits;
//   3. if num_partials > 1: combine them.
// The index and mask arithmetic below is the only one: the CPU target, the portable kernels and Hopper's share it.
#pragma once

#include <cstdint>

#include "kernels/base/host_device.h"
#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// What fp8 tensors are multiplied by, a factor for each sequence and KV head: [batch, num_heads_k], f32.
struct AttentionScales {
  const float* data = nullptr;  // null: 1
  int64_t batch_stride = 0, head_stride = 0;

  SGL_HOST_DEVICE float at(int batch, int kv_head) const {
    return data != nullptr ? data[batch * batch_stride + kv_head * head_stride] : 1.0f;
  }
};

// Strides are in elements. The last dimension of every tensor is dense. A null pointer means "not given".
struct AttentionParams {
  DType dtype = DType::kBF16;        // of q, k, v, k_new, v_new, rotary_cos, rotary_sin; out's is bf16 if this is fp8
  DType sinks_dtype = DType::kBF16;  // f32 | f16 | bf16

  // Queries. Dense: [batch, seqlen_q, num_heads, head_dim]. With cu_seqlens_q: [total_q, num_heads, head_dim], and the
  // batch strides of q, out, lse, out_accum and lse_accum are 0.
  const void* q = nullptr;
  int64_t q_batch_stride = 0, q_row_stride = 0, q_head_stride = 0;
  const int32_t* cu_seqlens_q = nullptr;  // [batch + 1]
  const int32_t* seqused_q = nullptr;     // [batch]
  const void* q_v = nullptr;              // as q, head_dim_v wide: the queries over v
  int64_t q_v_batch_stride = 0, q_v_row_stride = 0, q_v_head_stride = 0;

  // Keys and values, in one of three layouts:
  //   dense             [cache batch, seqlen_k, num_heads_k, head_dim(_v)]
  //   with cu_seqlens_k [total_k, num_heads_k, head_dim(_v)], batch stride 0
  //   with page_table   [num_pages, page_size, num_heads_k, head_dim(_v)], the batch stride steps from page to page
  const void* k = nullptr;
  const void* v = nullptr;
  int64_t k_batch_stride = 0, k_row_stride = 0, k_head_stride = 0;
  int64_t v_batch_stride = 0, v_row_stride = 0, v_head_stride = 0;
  const int32_t* cu_seqlens_k = nullptr;  // [batch + 1]
  const int32_t* seqused_k = nullptr;     // [batch] keys in the cache, left padding included, k_new not
  const int32_t* leftpad_k = nullptr;     // [batch] where a sequence starts in its row of the cache
  const int32_t* kv_batch_idx = nullptr;  // [batch] the row of the cache, or of page_table, that a sequence uses
  const int32_t* page_table = nullptr;    // [cache batch, max_pages]
  int64_t page_table_stride = 0;
  int page_size = 0;
  int64_t k_extent = 0;  // k.shape[0]: rows of the cache, total_k or num_pages

  // What is appended to the cache first. Dense: [batch, seqlen_k_new, …]; with cu_seqlens_k_new: [total_k_new, …].
  const void* k_new = nullptr;
  const void* v_new = nullptr;
  int64_t k_new_batch_stride = 0, k_new_row_stride = 0, k_new_head_stride = 0;
  int64_t v_new_batch_stride = 0, v_new_row_stride = 0, v_new_head_stride = 0;
  const int32_t* cu_seqlens_k_new = nullptr;  // [batch + 1]
  int seqlen_k_new = 0;                       // the extent, or total_k_new, a bound of every sequence's
  const void* rotary_cos = nullptr;           // [positions, rotary_dim / 2], dense
  const void* rotary_sin = nullptr;
  const int32_t* seqlens_rotary = nullptr;  // [batch] position of the first new key; without it, the cached length
  int rotary_dim = 0;
  int64_t rotary_positions = 0;
  bool rotary_interleaved = false;
  // Scratch for the rotated queries, shaped as q and dense. Step 1 fills it, and step 2 reads it instead of q:
  // flash_attention_forward() sees to that with with_rotated_queries().
  void* rotated_q = nullptr;

  // Results. lse [batch, num_heads, seqlen_q], or [num_heads, total_q] with cu_seqlens_q; natural logarithm.
  void* out = nullptr;  // as q, head_dim_v wide
  int64_t out_batch_stride = 0, out_row_stride = 0, out_head_stride = 0;
  float* lse = nullptr;
  int64_t lse_batch_stride = 0, lse_head_stride = 0;

  // Partial results, if more than one, f32, dense: [num_partials, batch, num_heads, seqlen_q, head_dim_v], or
  // [num_partials, num_heads, total_q, head_dim_v]; lse_accum likewise without the last dimension.
  int num_splits = 1;
  int num_partials = 1;  // num_splits, or that over what most_merged_splits() allows
  float* out_accum = nullptr;
  float* lse_accum = nullptr;
  int64_t out_accum_split_stride = 0, out_accum_batch_stride = 0, out_accum_head_stride = 0;  // a row: head_dim_v
  int64_t lse_accum_split_stride = 0, lse_accum_batch_stride = 0, lse_accum_head_stride = 0;

  int batch = 0;
  int seqlen_q = 0;     // the extent, or max_seqlen_q with cu_seqlens_q: no sequence has more
  int64_t total_q = 0;  // rows of q in all
  int seqlen_k = 0;     // the extent, max_seqlen_k with cu_seqlens_k, max_pages * page_size with page_table
  int num_heads = 0, num_heads_k = 0;
  int head_dim = 0, head_dim_v = 0;

  AttentionScales q_descale, k_descale, v_descale;
  float softmax_scale = 1.0f;
  float softcap = 0.0f;          // 0: none; else s becomes softcap * tanh(s / softcap), s scaled already
  const void* sinks = nullptr;   // [num_heads] a logit that takes part in the softmax and has no value
  int window_left = -1;          // keys before the query's position that it sees; -1: all
  int window_right = -1;         // keys behind it; -1: all. Causal is 0
  int attention_chunk = 0;       // > 0: a query sees only keys of its own chunk of so many positions
  bool rotate_q_by_row = false;  // causal or windowed: query i has position first + i, else all have position first

  SGL_HOST_DEVICE int group() const { return num_heads / num_heads_k; }  // query heads that share a KV head

  // What the products of a KV head's queries and keys are multiplied by.
  SGL_HOST_DEVICE float score_scale(int batch, int kv_head) const {
    return softmax_scale * q_descale.at(batch, kv_head) * k_descale.at(batch, kv_head);
  }
};

// One sequence of the batch.
struct AttentionSequence {
  int64_t q_start;  // its first row in a tensor with cu_seqlens_q, else 0
  int q_len;
  int64_t k_start;  // its first key in its row of the cache, or in a tensor with cu_seqlens_k; leftpad included
  int k_len;        // keys it attends to, the appended ones included
  int k_new_len;    // of these, the appended ones: the last ones
  int64_t k_new_start;
  int64_t kv_batch;  // its row in the cache or in page_table
};

SGL_HOST_DEVICE int clamp_length(int64_t length, int64_t most) {
  return static_cast<int>(length < 0 ? 0 : length > most ? most : length);
}

// Lengths that point beyond the tensors' extents are cut.
SGL_HOST_DEVICE AttentionSequence sequence_of(const AttentionParams& params, int batch) {
  AttentionSequence sequence;
  sequence.q_start = params.cu_seqlens_q != nullptr ? params.cu_seqlens_q[batch] : 0;
  int64_t q_len = params.seqlen_q;
  if (params.cu_seqlens_q != nullptr) q_len = params.cu_seqlens_q[batch + 1] - sequence.q_start;
  if (params.seqused_q != nullptr) q_len = params.seqused_q[batch];
  sequence.q_len = clamp_length(q_len, params.seqlen_q);

  const int leftpad = params.leftpad_k != nullptr ? params.leftpad_k[batch] : 0;
  const int64_t k_first = params.cu_seqlens_k != nullptr ? params.cu_seqlens_k[batch] : 0;
  int64_t k_len = params.seqlen_k;
  if (params.cu_seqlens_k != nullptr) k_len = params.cu_seqlens_k[batch + 1] - k_first;
  if (params.seqused_k != nullptr) k_len = params.seqused_k[batch];
  sequence.k_start = k_first + leftpad;
  sequence.k_new_start = 0;
  sequence.k_new_len = 0;
  if (params.k_new != nullptr) {
    sequence.k_new_len = params.seqlen_k_new;
    if (params.cu_seqlens_k_new != nullptr) {
      sequence.k_new_start = params.cu_seqlens_k_new[batch];
      sequence.k_new_len = params.cu_seqlens_k_new[batch + 1] - params.cu_seqlens_k_new[batch];
    }
  }
  sequence.k_len = clamp_length(k_len - leftpad + sequence.k_new_len, static_cast<int64_t>(params.seqlen_k) - leftpad);
  sequence.k_new_len = clamp_length(sequence.k_new_len, sequence.k_len);
  sequence.kv_batch = params.kv_batch_idx != nullptr ? params.kv_batch_idx[batch] : batch;
  return sequence;
}

// Where a key lies: its page (or row of the cache) and its row in that.
struct KeySlot {
  int block, row;
};

SGL_HOST_DEVICE KeySlot key_slot(const AttentionParams& params, const AttentionSequence& sequence, int key) {
  const int position = static_cast<int>(sequence.k_start) + key;
  if (params.page_table == nullptr) {
    return {params.cu_seqlens_k != nullptr ? 0 : static_cast<int>(sequence.kv_batch), position};
  }
  const int column = position / params.page_size;
  return {params.page_table[sequence.kv_batch * params.page_table_stride + column],
          position - column * params.page_size};
}

// The slot's place in k (or v, by its strides), for KV head 0: an offset in elements.
SGL_HOST_DEVICE int64_t slot_offset(KeySlot slot, int64_t batch_stride, int64_t row_stride) {
  return slot.block * batch_stride + slot.row * row_stride;
}

// Keys [begin, end) of a sequence; none if end <= begin.
struct KeyRange {
  int begin, end;
};

// The keys that query `row` sees. Both ends grow with the row, so a tile of rows sees nothing before its first row's
// begin and nothing from its last row's end on. The last query is aligned with the last key.
SGL_HOST_DEVICE KeyRange visible_keys(const AttentionParams& params, int q_len, int k_len, int row) {
  const int64_t position = static_cast<int64_t>(row) + k_len - q_len;
  int64_t begin = 0, end = k_len;
  if (params.window_left >= 0 && position - params.window_left > begin) begin = position - params.window_left;
  if (params.window_right >= 0 && position + params.window_right + 1 < end) end = position + params.window_right + 1;
  if (params.attention_chunk > 0) {
    const int within = static_cast<int>(position) % params.attention_chunk;
    const int64_t chunk = position - (within < 0 ? within + params.attention_chunk : within);
    if (chunk > begin) begin = chunk;
    if (chunk + params.attention_chunk < end) end = chunk + params.attention_chunk;
  }
  return {static_cast<int>(begin < k_len ? begin : k_len), static_cast<int>(end > 0 ? end : 0)};
}

inline constexpr int kMaxSplits = 256;
inline constexpr int kSplitTile = 64;  // keys: where the portable kernels split a range

// The part of `range` that split `split` of num_splits takes. It is cut at multiples of `tile`. The bounds
// depend on the sequence and on num_splits alone, not on the rest of the batch.
SGL_HOST_DEVICE KeyRange split_of(KeyRange range, int split, int num_splits, int tile) {
  if (range.end <= range.begin) return {0, 0};
  const int first_tile = range.begin / tile;
  const int tiles = (range.end - 1) / tile + 1 - first_tile;
  const int each = (tiles + num_splits - 1) / num_splits;
  const int64_t begin = (first_tile + static_cast<int64_t>(each) * split) * tile;
  const int64_t end = begin + static_cast<int64_t>(each) * tile;
  return {static_cast<int>(begin > range.begin ? (begin < range.end ? begin : range.end) : range.begin),
          static_cast<int>(end < range.end ? end : range.end)};
}

// The position of a sequence's first new key, and of its first query, in the rotary tables.
SGL_HOST_DEVICE int64_t first_rotary_position(const AttentionParams& params, const AttentionSequence& sequence,
                                              int batch) {
  if (params.seqlens_rotary != nullptr) return params.seqlens_rotary[batch];
  return sequence.k_len - sequence.k_new_len;
}

// Positions behind the tables' end are cut, as lengths are.
SGL_HOST_DEVICE int64_t clamp_rotary_position(const AttentionParams& params, int64_t position) {
  return position < 0 ? 0 : position < params.rotary_positions ? position : params.rotary_positions - 1;
}

// Up to here one warp holds whole rows of the output. Wider values are for a head_dim of at most kMostHeadDimWithWide.
inline constexpr int kMostNarrowValues = 256;
inline constexpr int kMostWideValues = 512;
inline constexpr int kMostHeadDimWithWide = 64;

// Whether a call is for the kernels of wide values, which take queries over v as well.
inline bool has_wide_values(int64_t head_dim_v, bool has_q_v) { return has_q_v || head_dim_v > kMostNarrowValues; }

inline bool has_wide_values(const AttentionParams& params) {
  return has_wide_values(params.head_dim_v, params.q_v != nullptr);
}

// Whether a sequence has so few queries, over the heads that share a KV head, that reading the keys is what takes time.
inline bool few_packed_rows(int64_t seqlen_q, int64_t group) { return seqlen_q * group <= 32; }

inline bool few_packed_rows(const AttentionParams& params) { return few_packed_rows(params.seqlen_q, params.group()); }

// After step 1 the queries are those in rotated_q.
SGL_HOST_DEVICE AttentionParams with_rotated_queries(AttentionParams params) {
  if (params.rotary_dim == 0) return params;
  params.q = params.rotated_q;
  params.q_head_stride = params.head_dim;
  params.q_row_stride = static_cast<int64_t>(params.num_heads) * params.head_dim;
  params.q_batch_stride = params.cu_seqlens_q != nullptr ? 0 : params.seqlen_q * params.q_row_stride;
  return params;
}

// Whether a call's splits may be merged inside step 2.
inline bool merges_splits(int64_t seqlen_q, int64_t group, int64_t head_dim_v, bool has_q_v) {
  return few_packed_rows(seqlen_q, group) && !has_wide_values(head_dim_v, has_q_v);
}

// How many splits of merges_splits() a target may merge: a power of two, 1 if it merges none.
inline constexpr int kMostMergedSplits = 16;  // the most blocks that a cluster can have
Status flash_attention_most_merged_splits(int* most);

// The partial results of num_splits splits where `most_merged` may be merged: the largest power of two that divides
// num_splits is, up to that.
inline int64_t partials_of(int64_t num_splits, int64_t most_merged) {
  const int64_t merged = num_splits & -num_splits;
  return num_splits / (merged < most_merged ? merged : most_merged);
}

// The target function: steps 1 to 3. The portable CUDA code behind it is declared in flash_attention_portable.h.
Status flash_attention_forward(const AttentionParams& params, Stream stream);

}  // namespace sgl_kernel
