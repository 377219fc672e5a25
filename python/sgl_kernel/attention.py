"""Attention, and the merging of its partial results."""

from __future__ import annotations

import functools

import torch

from sgl_kernel import _attention as _native
from sgl_kernel._ops import eager_or_traced, fakes, implements

__all__ = ["merge_state", "merge_state_v2"]

_merge_state = eager_or_traced("merge_state", _native.merge_state)
_merge_state_v2 = eager_or_traced("merge_state_v2", _native.merge_state_v2)


def _merge(operator, v_a, s_a, v_b, s_b, v_merged, s_merged) -> tuple[torch.Tensor, torch.Tensor]:
    s_a, s_b = (s.to(torch.float32) if s.is_floating_point() else s for s in (s_a, s_b))
    if v_merged is None:
        v_merged = torch.empty_like(v_a)
    if s_merged is None:
        s_merged = torch.empty_like(s_a)
    operator(v_a, s_a, v_b, s_b, v_merged, s_merged)
    return v_merged, s_merged


def merge_state(
    v_a: torch.Tensor,
    s_a: torch.Tensor,
    v_b: torch.Tensor,
    s_b: torch.Tensor,
    v_merged: torch.Tensor | None = None,
    s_merged: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merges the attention of one query over two disjoint sets of keys; log-sum-exps to the base 2, as FlashInfer's.

        w_a = 2^s_a, w_b = 2^s_b
        v_merged = (w_a v_a + w_b v_b) / (w_a + w_b),  s_merged = log2(w_a + w_b)

    A state whose s is -inf or +inf is empty, whatever its v holds. Two empty states merge to v = 0, s = -inf.

    Args:
      v_a, v_b: [T, H, D], float32, float16 or bfloat16; tokens and heads may be strided.
      s_a, s_b: [T, H], any strides, any floating-point dtype; converted to float32.
      v_merged: like v_a, or v_a or v_b itself; made if None.
      s_merged: [T, H], float32, apart from the others in memory; made if None.

    Returns:
      v_merged and s_merged.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
    """
    return _merge(_merge_state, v_a, s_a, v_b, s_b, v_merged, s_merged)


def merge_state_v2(
    v_a: torch.Tensor,
    s_a: torch.Tensor,
    v_b: torch.Tensor,
    s_b: torch.Tensor,
    v_merged: torch.Tensor | None = None,
    s_merged: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """merge_state of natural log-sum-exps, which FlashAttention's and this library's attention return.

        w_a = e^s_a, w_b = e^s_b

    Arguments, results and errors are merge_state's.
    """
    return _merge(_merge_state_v2, v_a, s_a, v_b, s_b, v_merged, s_merged)


@functools.cache
def _num_sms(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _most_merged_splits(device: torch.device) -> int:
    return _native.fwd_most_merged_splits(torch.cuda.current_device() if device.index is None else device.index)


def _attention_results(
    q, k, v, q_v, out, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, page_table, window_left, window_right,
    is_causal, num_splits, sm_margin,
):  # fmt: skip
    """fwd's four results, empty: out, softmax_lse, and the partial ones (of no elements if there are none); num_splits.

    num_splits is the chosen one where it was 0."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() < 3:  # the native function looks at the rest
            raise ValueError(f"fwd: {name} has {tensor.dim()} dimensions, expected 3 or 4")
    for name, tensor in (("cu_seqlens_q", cu_seqlens_q), ("page_table", page_table)):
        if tensor is not None and tensor.dim() == 0:
            raise ValueError(f"fwd: {name} has 0 dimensions, expected 1 or 2")
    rows = q.shape[:-2]
    num_heads, head_dim_v = q.shape[-2], v.shape[-1]
    if out is None:
        dtype = torch.bfloat16 if q.dtype == torch.float8_e4m3fn else q.dtype
        out = q.new_empty((*rows, num_heads, head_dim_v), dtype=dtype)
    if cu_seqlens_q is None:
        batch, seqlen_q = rows[0], rows[-1]
        lse_shape = (batch, num_heads, seqlen_q)
    else:
        batch, seqlen_q = cu_seqlens_q.shape[0] - 1, rows[0] if max_seqlen_q is None else max_seqlen_q
        lse_shape = (num_heads, rows[0])
    partials = 1
    if q.device.type == "cuda":
        if num_splits == 0:
            if page_table is not None:
                seqlen_k = page_table.shape[-1] * k.shape[1]
            elif cu_seqlens_k is not None:
                seqlen_k = k.shape[0] if max_seqlen_k is None else max_seqlen_k
            else:
                seqlen_k = k.shape[1]
            num_splits = _native.fwd_num_splits(
                batch, num_heads, k.shape[-2], seqlen_q, seqlen_k, head_dim_v, q_v is not None,
                q.dtype == torch.float8_e4m3fn, window_left, 0 if is_causal else window_right,
                max(_num_sms(q.device) - sm_margin, 1), _most_merged_splits(q.device),
            )  # fmt: skip
        merged = _most_merged_splits(q.device)
        partials = _native.fwd_num_partials(
            num_splits, num_heads, k.shape[-2], seqlen_q, head_dim_v, q_v is not None, merged
        )
    softmax_lse = q.new_empty(lse_shape, dtype=torch.float32)
    accum_shape = (partials if partials > 1 else 0, *lse_shape)
    softmax_lse_accum = q.new_empty(accum_shape, dtype=torch.float32)
    out_accum = q.new_empty((*accum_shape, head_dim_v), dtype=torch.float32)
    return (out, softmax_lse, out_accum, softmax_lse_accum), num_splits


@implements("fwd")
def _fwd(
    q, k, v, k_new, v_new, q_v, out, cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_q, seqused_k, max_seqlen_q,
    max_seqlen_k, page_table, kv_batch_idx, leftpad_k, rotary_cos, rotary_sin, seqlens_rotary, q_descale, k_descale,
    v_descale, softmax_scale, is_causal, window_size_left, window_size_right, attention_chunk, softcap,
    is_rotary_interleaved, scheduler_metadata, num_splits, pack_gqa, sm_margin, sinks,
):  # fmt: skip
    results, num_splits = _attention_results(
        q, k, v, q_v, out, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, page_table, window_size_left,
        window_size_right, is_causal, num_splits, sm_margin,
    )  # fmt: skip
    rotated_q = q if rotary_cos is None else q.new_empty(q.shape)  # not used without rotation
    _native.fwd(
        *results, rotated_q, q, k, v, k_new, v_new, q_v, out, cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_q,
        seqused_k, max_seqlen_q, max_seqlen_k, page_table, kv_batch_idx, leftpad_k, rotary_cos, rotary_sin,
        seqlens_rotary, q_descale, k_descale, v_descale, softmax_scale, is_causal, window_size_left,
        window_size_right, attention_chunk, softcap, is_rotary_interleaved, scheduler_metadata, num_splits, pack_gqa,
        sm_margin, sinks,
    )  # fmt: skip
    return results


@fakes("fwd")
def _fwd_fake(
    q, k, v, k_new, v_new, q_v, out, cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_q, seqused_k, max_seqlen_q,
    max_seqlen_k, page_table, kv_batch_idx, leftpad_k, rotary_cos, rotary_sin, seqlens_rotary, q_descale, k_descale,
    v_descale, softmax_scale, is_causal, window_size_left, window_size_right, attention_chunk, softcap,
    is_rotary_interleaved, scheduler_metadata, num_splits, pack_gqa, sm_margin, sinks,
):  # fmt: skip
    return _attention_results(
        q, k, v, q_v, out, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, page_table, window_size_left,
        window_size_right, is_causal, num_splits, sm_margin,
    )[0]  # fmt: skip
