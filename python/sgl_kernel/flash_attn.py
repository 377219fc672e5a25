"""FlashAttention's interface, as upstream's sgl_kernel.flash_attn has it. One implementation serves both `ver`s."""

from __future__ import annotations

import torch

from sgl_kernel._ops import eager_or_traced
from sgl_kernel.attention import _fwd as _fwd_eager

__all__ = ["flash_attn_varlen_func", "flash_attn_with_kvcache", "is_fa3_supported"]

_fwd = eager_or_traced("fwd", _fwd_eager)


def is_fa3_supported(device=None) -> bool:
    """Whether FlashAttention-3's Hopper kernels run on the device. Attention itself runs on every device.

    Args:
      device: a CUDA device or its ordinal; the current one if None.

    Returns:
      True on compute capability 9.x; False elsewhere, and without a GPU.

    Raises:
      AssertionError or RuntimeError: torch's, for a device that there is not.
    """
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] == 9


def _dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor, or its copy with a last stride of 1."""
    if tensor is None or tensor.is_contiguous() or tensor.stride(-1) == 1:
        return tensor
    return tensor.contiguous()


def _softmax_scale(softmax_scale: float | None, q: torch.Tensor, qv: torch.Tensor | None) -> float:
    if softmax_scale is not None:
        return softmax_scale
    return (q.shape[-1] + (qv.shape[-1] if qv is not None else 0)) ** -0.5


def _refuse(function: str, score_mod, aux_tensors, ver: int) -> None:
    if score_mod is not None or aux_tensors is not None:
        raise NotImplementedError(f"{function}: score_mod or aux_tensors is given, expected None (not built yet)")
    if ver not in (3, 4):
        raise ValueError(f"{function}: ver is {ver}, expected 3 or 4")


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    qv: torch.Tensor | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    cache_seqlens: int | torch.Tensor | None = None,
    cache_batch_idx: torch.Tensor | None = None,
    cache_leftpad: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k_new: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: torch.Tensor | None = None,
    q_descale: torch.Tensor | None = None,
    k_descale: torch.Tensor | None = None,
    v_descale: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int | None = None,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: torch.Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    sinks: torch.Tensor | None = None,
    score_mod=None,
    aux_tensors=None,
    ver: int = 3,
):
    """Attention of new queries over a cache of keys and values, dense or paged, to which k and v are appended first.

        s[i, j] = softmax_scale (q[i] · k[j] + qv[i] · v[j]), softcap tanh(s / softcap) if softcap > 0
        out[i]  = sum_j exp(s[i, j] - lse[i]) v[j],  lse[i] = log(sum_j exp(s[i, j]) + exp(sink))

    The last query is aligned with the last key: query i has position p = i + seqlen_k - seqlen_q and sees the keys
    j <= p if causal, p - window_size[0] <= j <= p + window_size[1], of its own chunk of attention_chunk positions. A
    query that sees no key has out = 0 and lse = -inf (with sinks: the sink). Query head h uses KV head
    h // (H // Hk).

    Args:
      q: [B, Sq, H, D], or [T, H, D] with cu_seqlens_q. float16, bfloat16 or float8_e4m3fn, on the CPU also float32; D a
        multiple of 8 (fp8: 16) up to 256.
      k_cache, v_cache: [C, Sk, Hk, D] and [C, Sk, Hk, Dv], or [pages, page_size, Hk, …] with page_table; of q's dtype.
        Any page_size. What lies behind a sequence's last key is never looked at. Dv is a multiple of 8 (fp8: 16) up to
        256, or up to 512 if D is at most 64 and it is not fp8.
      k, v: [B, Sn, Hk, D] and […, Dv], or [T, Hk, …] with cu_seqlens_k_new: written into the cache, in place, behind
        its cache_seqlens keys. Of the cache's dtype, and scaled as it is.
      qv: like q but Dv wide, queries over the values (multi-head latent attention); for D up to 64, not fp8.
      rotary_cos, rotary_sin: [positions, rotary_dim / 2], of q's dtype. They turn k, from position rotary_seqlens (or
        cache_seqlens) on, and q: row i by that position + i if causal, windowed or chunked, else all rows by it.
      cache_seqlens: the keys in the cache; an int, or [B] int32. All of it if None.
      cache_batch_idx: [B] int32, the row of the cache (or of page_table) that a sequence uses.
      cache_leftpad: [B] int32, how many of the cached keys to skip at the start.
      page_table: [C, max_pages] int32.
      cu_seqlens_q, cu_seqlens_k_new: [B + 1] int32, where the sequences begin in q and in k.
      max_seqlen_q: the longest of them in q; the total if None.
      q_descale, k_descale, v_descale: [B, Hk] float32, any strides: what fp8 q, k_cache and v_cache are multiplied by,
        for each sequence and KV head; 1 if None.
      softmax_scale: positive; 1 / sqrt(D) if None, or 1 / sqrt(D + Dv) with qv.
      window_size: keys to the left and to the right of the position; -1 is no bound.
      rotary_interleaved: pairs (2 i, 2 i + 1), else (i, i + rotary_dim / 2).
      num_splits: into how many parts the keys are split, up to 256; 0 chooses by the shapes. With a fixed number a
        sequence's bits do not depend on the other sequences. Ignored on the CPU.
      scheduler_metadata, pack_gqa: ignored.
      sm_margin: multiprocessors to leave out of account in choosing num_splits.
      sinks: [H], a logit of each head that takes part in the softmax and has no value.
      score_mod, aux_tensors: not supported; upstream's ver=4 kernels alone take them.
      ver: 3 or 4, which give the same.

    Returns:
      out, [B, Sq, H, Dv] or [T, H, Dv], of q's dtype (bfloat16 if that is fp8); with return_softmax_lse the tuple (out,
      softmax_lse, out_accum, softmax_lse_accum), where softmax_lse is float32 [B, H, Sq] or [H, T] and the last two are
      scratch.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
      NotImplementedError: score_mod or aux_tensors.
    """
    _refuse("flash_attn_with_kvcache", score_mod, aux_tensors, ver)
    if isinstance(cache_seqlens, int):
        batch = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
        cache_seqlens = torch.full((batch,), cache_seqlens, dtype=torch.int32, device=k_cache.device)
    if (k is not None) and (k_cache.stride(-1) != 1 or v_cache.stride(-1) != 1):
        raise ValueError("flash_attn_with_kvcache: the cache has no last stride of 1, expected one (it is written)")
    softmax_scale = _softmax_scale(softmax_scale, q, qv)
    results = _fwd(
        _dense(q), _dense(k_cache), _dense(v_cache), _dense(k), _dense(v), _dense(qv), None, _dense(cu_seqlens_q), None,
        _dense(cu_seqlens_k_new), None, _dense(cache_seqlens), max_seqlen_q, None, _dense(page_table),
        _dense(cache_batch_idx), _dense(cache_leftpad), _dense(rotary_cos), _dense(rotary_sin), _dense(rotary_seqlens),
        q_descale, k_descale, v_descale, softmax_scale, causal, window_size[0], window_size[1], attention_chunk or 0,
        softcap, rotary_interleaved, scheduler_metadata, num_splits, pack_gqa, sm_margin, sinks,
    )  # fmt: skip
    return results if return_softmax_lse else results[0]


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    seqused_q: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: torch.Tensor | None = None,
    q_descale: torch.Tensor | None = None,
    k_descale: torch.Tensor | None = None,
    v_descale: torch.Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    sinks: torch.Tensor | None = None,
    score_mod=None,
    aux_tensors=None,
    ver: int = 3,
):
    """Attention over sequences of different lengths that lie one behind another. The formula, the masks and the
    arguments that are not told here are flash_attn_with_kvcache's.

        out[i] = sum_j softmax_j(softmax_scale q[i] · k[j]) v[j], within a sequence

    Args:
      q: [Tq, H, D]; sequence b has the rows from cu_seqlens_q[b] to cu_seqlens_q[b + 1].
      k, v: [Tk, Hk, D] and [Tk, Hk, Dv], with cu_seqlens_k; or [pages, page_size, Hk, …] with page_table and seqused_k.
      cu_seqlens_q, cu_seqlens_k: [B + 1] int32.
      max_seqlen_q, max_seqlen_k: the longest sequence's lengths; the totals if None.
      seqused_q, seqused_k: [B] int32, how many rows of a sequence are used. Rows of out that are not are not written.

    Returns:
      out, [Tq, H, Dv]; with return_softmax_lse the tuple (out, softmax_lse, out_accum, softmax_lse_accum), where
      softmax_lse is float32 [H, Tq] and the last two are scratch.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
      NotImplementedError: score_mod or aux_tensors.
    """
    _refuse("flash_attn_varlen_func", score_mod, aux_tensors, ver)
    softmax_scale = _softmax_scale(softmax_scale, q, qv)
    results = _fwd(
        _dense(q), _dense(k), _dense(v), None, None, _dense(qv), None, _dense(cu_seqlens_q), _dense(cu_seqlens_k), None,
        seqused_q, seqused_k, max_seqlen_q, max_seqlen_k, _dense(page_table), None, None, None, None, None, q_descale,
        k_descale, v_descale, softmax_scale, causal, window_size[0], window_size[1], attention_chunk or 0, softcap,
        False, None, num_splits, pack_gqa, sm_margin, sinks,
    )  # fmt: skip
    return results if return_softmax_lse else results[0]
