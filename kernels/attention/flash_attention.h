// Attention over dense, ragged or paged keys and values, with an optional append to the cache first.
//   p[i] = i + seqlen_k - seqlen_q                         the last query is aligned with the last key
//   s[i, j] = scale (q[i] · k[j] + q_v[i] · v[j]), capped: softcap tanh(s / softcap) if softcap > 0
//   query i sees key j if                                  p[i] - window_left <= j <= p[i] + window_right,
//                                                          floor(p[i] / chunk) = floor(j / chunk)
//   out[i] = sum_j exp(s[i, j] - lse[i]) v[j],             lse[i] = log(sum_j exp(s[i, j]) + exp(sink))
// Query head h uses KV head h / (num_heads / num_heads_k). A query that sees nothing has out = 0 and lse = -inf, or the
// sink. Scores and sums are f32; probabilities are rounded to q's dtype (of fp8: to f16) before they meet v on a GPU.
// fp8 tensors stand for their values times q_descale, k_descale or v_descale of the sequence and KV head.
//
//   q, out, q_v  [B, Sq, H, D], [B, Sq, H, Dv] both        or [Tq, H, D], [Tq, H, Dv] both with cu_seqlens_q
//   softmax_lse  [B, H, Sq]                                or [H, Tq]; f32, dense, natural logarithm
//   k, v         [C, Sk, Hk, D], [C, Sk, Hk, Dv]           C = B, or any with kv_batch_idx
//                [Tk, Hk, D], [Tk, Hk, Dv]                 with cu_seqlens_k
//                [pages, page_size, Hk, D], […, Dv]        with page_table [C, max_pages]; any page_size
//   out_accum, softmax_lse_accum                           scratch of num_splits > 1, f32, dense:
//                [P, B, H, Sq, Dv] and [P, B, H, Sq]       or [P, H, Tq, Dv] and [P, H, Tq]; P = fwd_num_partials()
//                if P = 1, and on the CPU, empty: their first extent is 0
//   rotated_q    q's shape and dtype, dense                scratch of rotary_cos; else empty
//   k_new, v_new [B, Sn, Hk, D], [B, Sn, Hk, Dv]           or [Tn, Hk, …] with cu_seqlens_k_new; written to the cache
//                                                          behind its seqused_k keys, and attended to with them
//   rotary_cos, rotary_sin [positions, rotary_dim / 2]     q's dtype, dense; they turn k_new, from position
//                seqlens_rotary (default: the keys in the cache) on, and q: row i by that position + i if causal,
//                windowed or chunked, else every row by it
//   cu_seqlens_* [B + 1], seqused_*, leftpad_k, kv_batch_idx, seqlens_rotary [B], page_table: i32, dense (page_table's
//                rows may be strided). seqused_k is the number of keys in the cache, leftpad_k of them to be skipped
//   q_descale, k_descale, v_descale [B, Hk], f32           any strides, 0 too; of fp8 only; 1 if not given
//   sinks        [H], f32 | f16 | bf16
// Dtypes: f16 | bf16 | e4m3 (fp8), on the CPU also f32; one for q, q_v, k, v, k_new, v_new, out, but out is bf16 if the
// others are fp8, and q_v is not. New keys and values are copied as they are: their scales are the cache's.
// D: a multiple of 8 up to 256. Dv: likewise, up to 512 if D <= 64. Of fp8 both are multiples of 16 up to 256. With q_v
// D <= 64 (multi-head latent attention: q and k are the rotated part, v the latent cache).
// Rows and heads may be strided; last dimensions are dense. On a GPU q, q_v, k, v and out are aligned to 16 bytes, with
// their strides.
//
// max_seqlen_q and max_seqlen_k bound every sequence's lengths under cu_seqlens_*; without them the totals do. Longer
// sequences are cut there, as lengths beyond the cache are. Index tensors that hold anything else are refused before
// anything is written, on a GPU if checks_values() (SGL_KERNEL_CHECK=1), where they are the caller's duty otherwise:
// cu_seqlens ascend within the tensors; seqused_* of them are within their sequences; the cache has room for k_new;
// kv_batch_idx, leftpad_k and the pages of a sequence's keys are in range. What page_table and the cache hold behind a
// sequence's last key is never looked at, NaN included. scheduler_metadata and pack_gqa change nothing; sm_margin is
// fwd_num_splits()'s.
//
// The same bits every run. A row's bits depend on its own sequence and on num_splits (and, on a GPU, on which side of
// few_packed_rows() the longest sequence lies), not on the other rows of the batch: fix num_splits for that.
//
// Wrong dtypes, shapes, strides, alignments or devices are InvalidArgument and nothing is written. No queries: a no-op,
// which appends no k_new either.
// Source: Dao 2023 (FlashAttention-2), Milakov & Gimelshein 2018 (online softmax), FlashAttention-3's interface.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// Attention as told above. The results and the scratch tensors come first, then the schema's arguments; given_out is
// its out: null, or the memory of out. softmax_scale is 1 / sqrt(D) if not given.
Status fwd(TensorView out, TensorView softmax_lse, TensorView out_accum, TensorView softmax_lse_accum,
           TensorView rotated_q, TensorView q, TensorView k, TensorView v, const std::optional<TensorView>& k_new,
           const std::optional<TensorView>& v_new, const std::optional<TensorView>& q_v,
           const std::optional<TensorView>& given_out, const std::optional<TensorView>& cu_seqlens_q,
           const std::optional<TensorView>& cu_seqlens_k, const std::optional<TensorView>& cu_seqlens_k_new,
           const std::optional<TensorView>& seqused_q, const std::optional<TensorView>& seqused_k,
           std::optional<int64_t> max_seqlen_q, std::optional<int64_t> max_seqlen_k,
           const std::optional<TensorView>& page_table, const std::optional<TensorView>& kv_batch_idx,
           const std::optional<TensorView>& leftpad_k, const std::optional<TensorView>& rotary_cos,
           const std::optional<TensorView>& rotary_sin, const std::optional<TensorView>& seqlens_rotary,
           const std::optional<TensorView>& q_descale, const std::optional<TensorView>& k_descale,
           const std::optional<TensorView>& v_descale, std::optional<double> softmax_scale, bool is_causal,
           int64_t window_size_left, int64_t window_size_right, int64_t attention_chunk, double softcap,
           bool is_rotary_interleaved, const std::optional<TensorView>& scheduler_metadata, int64_t num_splits,
           std::optional<bool> pack_gqa, int64_t sm_margin, const std::optional<TensorView>& sinks, Stream stream);

// How many splits fwd() merges before it leaves partial results, on that device and for calls of few queries: 1 if
// none.
int64_t fwd_most_merged_splits(Device device);

// How many partial results num_splits splits leave, with fwd_most_merged_splits() of the device: 1 beyond 256 splits,
// which fwd() refuses. The extents are those that fwd() goes by.
int64_t fwd_num_partials(int64_t num_splits, int64_t num_heads, int64_t num_heads_k, int64_t seqlen_q,
                         int64_t head_dim_v, bool has_q_v, int64_t most_merged);

// How many ways to split the keys so that a GPU of `num_sms` multiprocessors is done soonest: between 1 and 256, and 1
// for extents that fwd() refuses. From the shapes alone: seqlen_q and seqlen_k are the extents or bounds that fwd()
// goes by, appended keys included; the windows are -1 where there are none, most_merged is fwd_most_merged_splits().
int64_t fwd_num_splits(int64_t batch, int64_t num_heads, int64_t num_heads_k, int64_t seqlen_q, int64_t seqlen_k,
                       int64_t head_dim_v, bool has_q_v, bool is_fp8, int64_t window_left, int64_t window_right,
                       int64_t num_sms, int64_t most_merged);

}  // namespace sgl_kernel
