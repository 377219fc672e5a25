// Rotary position embedding of queries and keys, by a table of cosines and sines.
//
// A head's first rotary_dim elements are pairs (x, y); with the cos and sin of the token's position
//   x' = x cos - y sin        y' = y cos + x sin        in f32, rounded once
// Pair i < rotary_dim / 2 is elements (i, i + rotary_dim / 2), or (2i, 2i + 1) if interleaved. Elements from rotary_dim
// on are copied. Row p of cos_sin_cache holds the cosines of position p, then its sines: [max_position, rotary_dim].
//
// Positions and cache slots lie in range: those that do not are refused before anything is written, on a GPU if
// checks_values() (SGL_KERNEL_CHECK=1), where they are the caller's duty otherwise. Of tokens that share a cache slot,
// which one stays is not defined. No tokens: a no-op. Wrong dtypes, shapes, strides or devices are InvalidArgument.
// Source: Su et al. 2021 (RoFormer).
#pragma once

#include <optional>

#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace sgl_kernel {

// q_rope = rotated q, k_rope = rotated k; and, if v is given, k_buffer[kv_cache_loc[t]] = k_rope[t] and
// v_buffer[kv_cache_loc[t]] = v[t].
//   q, q_rope      [T, Hq, D]   f32 | f16 | bf16; any strides of T and H; D <= 1024. q_rope may be q, k_rope may be k.
//   k, k_rope      [T, Hk, D]   dtype of q; Hk may be 0
//   cos_sin_cache  [P, R]       f32; R even, at most D; rows may be strided
//   pos_ids        [T]          i32 | i64, 0 <= pos_ids < P, contiguous
//   v              [T, Hk, D]   dtype of q ⎫
//   k_buffer       [S, Hk, D]   dtype of q ⎬ all or none of them; v_buffer and k_buffer may be parts of one cache
//   v_buffer       [S, Hk, D]   dtype of q ⎪
//   kv_cache_loc   [T]          i32 | i64  ⎭ 0 <= kv_cache_loc < S, contiguous
// enable_pdl: programmatic dependent launch.
Status apply_rope_pos_ids_cos_sin_cache(TensorView q, TensorView k, TensorView q_rope, TensorView k_rope,
                                        TensorView cos_sin_cache, TensorView pos_ids, bool interleave, bool enable_pdl,
                                        const std::optional<TensorView>& v, const std::optional<TensorView>& k_buffer,
                                        const std::optional<TensorView>& v_buffer,
                                        const std::optional<TensorView>& kv_cache_loc, Stream stream);

// Rotates query and key in place.
//   positions      [T] | [B, L]   i32 | i64, contiguous
//   query          positions.shape + [Hq * head_size] or + [Hq, head_size]   f32 | f16 | bf16
//   key            likewise, Hk heads; optional
//   cos_sin_cache  [P, R]         f32 or the dtype of query
// is_neox: pairs are halves apart; else interleaved.
Status rotary_embedding(TensorView positions, TensorView query, const std::optional<TensorView>& key, int64_t head_size,
                        TensorView cos_sin_cache, bool is_neox, Stream stream);

}  // namespace sgl_kernel
