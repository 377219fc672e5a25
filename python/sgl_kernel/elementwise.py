"""Norms, gated activations and rotary embeddings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sgl_kernel import _elementwise as _native
from sgl_kernel._ops import eager_or_traced, two_forms

__all__ = [
    "FusedSetKVBufferArg",
    "apply_rope_pos_ids_cos_sin_cache",
    "apply_rope_with_cos_sin_cache_inplace",
    "fused_add_rmsnorm",
    "gelu_and_mul",
    "gelu_tanh_and_mul",
    "gemma_fused_add_rmsnorm",
    "gemma_rmsnorm",
    "rmsnorm",
    "rotary_embedding",
    "silu_and_mul",
]

_rmsnorm = eager_or_traced("rmsnorm", _native.rmsnorm)
_fused_add_rmsnorm = eager_or_traced("fused_add_rmsnorm", _native.fused_add_rmsnorm)
_gemma_rmsnorm = eager_or_traced("gemma_rmsnorm", _native.gemma_rmsnorm)
_gemma_fused_add_rmsnorm = eager_or_traced("gemma_fused_add_rmsnorm", _native.gemma_fused_add_rmsnorm)
_silu_and_mul = eager_or_traced("silu_and_mul", _native.silu_and_mul)
_gelu_tanh_and_mul = eager_or_traced("gelu_tanh_and_mul", _native.gelu_tanh_and_mul)
_gelu_and_mul = eager_or_traced("gelu_and_mul", _native.gelu_and_mul)
_apply_rope = eager_or_traced("apply_rope_pos_ids_cos_sin_cache", _native.apply_rope_pos_ids_cos_sin_cache)
_rotary_embedding = eager_or_traced("rotary_embedding", _native.rotary_embedding)


def _third_is_tensor(args: tuple, kwargs: dict) -> bool:
    """rmsnorm(output, input, weight, …), where the functional form has eps."""
    return "output" in kwargs or (len(args) > 2 and isinstance(args[2], torch.Tensor))


def _norm_in_two_forms(operator: Callable[..., None]):
    """Makes a documented function run `operator`, a norm, in both calling forms; see two_forms()."""

    def into(output, input, weight, eps=1e-6, enable_pdl=True) -> None:
        operator(output, input, weight, eps, enable_pdl is not False)

    def functional(input, weight, eps=1e-6, out=None, enable_pdl=None):
        if out is None:
            out = torch.empty_like(input)
        operator(out, input, weight, eps, enable_pdl is not False)
        return out

    call_any = two_forms(_third_is_tensor, into)(functional)

    def decorate(documented):
        into.__qualname__ = functional.__qualname__ = documented.__name__  # which is told of wrong arguments

        # The usual calls are spelled out: to pass *args and **kwargs on is as slow as the rest of Python's part.
        @functools.wraps(documented)
        def call(first=None, second=None, third=None, /, *rest, eps=None, out=None, enable_pdl=None, **named):
            if second is not None and not rest and not named:
                if third is None:
                    return functional(first, second, 1e-6 if eps is None else eps, out, enable_pdl)
                if out is None and isinstance(third, torch.Tensor):
                    return into(first, second, third, 1e-6 if eps is None else eps, enable_pdl)
                if eps is None:
                    return functional(first, second, third, out, enable_pdl)
            args = [value for value in (first, second, third) if value is not None]
            named |= {"eps": eps, "out": out, "enable_pdl": enable_pdl}
            return call_any(*args, *rest, **{name: value for name, value in named.items() if value is not None})

        return call

    return decorate


@_norm_in_two_forms(_rmsnorm)
def rmsnorm(
    input: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    out: torch.Tensor | None = None,
    enable_pdl: bool | None = None,
) -> torch.Tensor:
    """Normalizes each row by its root mean square (Zhang & Sennrich 2019).

        out[t, d] = input[t, d] / sqrt(mean_d(input[t, :]²) + eps) · weight[d]

    Args:
      input: [..., D], float32, float16 or bfloat16; rows may be strided, the last dimension is dense.
      weight: [D], of input's dtype.
      eps: at least 0.
      out: like input, or input itself; made if None.
      enable_pdl: programmatic dependent launch; None is True. Ignored before sm_90.

    Returns:
      out. Also called as rmsnorm(output, input, weight, eps, enable_pdl), which returns None.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
    """


def fused_add_rmsnorm(
    input: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    enable_pdl: bool | None = None,
) -> None:
    """Adds, then normalizes, both in place; the same bits as an addition followed by rmsnorm.

        residual[t, d] = input[t, d] + residual[t, d]
        input[t, d]    = residual[t, d] / sqrt(mean_d(residual[t, :]²) + eps) · weight[d]

    Args:
      input, residual: [..., D], float32, float16 or bfloat16, apart from each other in memory.
      weight: [D], of input's dtype.
      eps: at least 0.
      enable_pdl: programmatic dependent launch; None is True. Ignored before sm_90.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
    """
    _fused_add_rmsnorm(input, residual, weight, eps, enable_pdl is not False)


@_norm_in_two_forms(_gemma_rmsnorm)
def gemma_rmsnorm(
    input: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    out: torch.Tensor | None = None,
    enable_pdl: bool | None = None,
) -> torch.Tensor:
    """rmsnorm with 1 + weight[d] in place of weight[d], as Gemma's checkpoints want it.

        out[t, d] = input[t, d] / sqrt(mean_d(input[t, :]²) + eps) · (1 + weight[d])

    Arguments, result and errors are rmsnorm's.
    """


def gemma_fused_add_rmsnorm(
    input: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    enable_pdl: bool | None = None,
) -> None:
    """fused_add_rmsnorm with 1 + weight[d] in place of weight[d], as Gemma's checkpoints want it.

    Arguments and errors are fused_add_rmsnorm's.
    """
    _gemma_fused_add_rmsnorm(input, residual, weight, eps, enable_pdl is not False)


def _second_is_wider(name: str):
    """silu_and_mul(out, input), where the functional form is (input, out): the input is twice as wide."""

    def is_destination(args: tuple, kwargs: dict) -> bool:
        if len(args) != 2 or not isinstance(args[0], torch.Tensor) or not isinstance(args[1], torch.Tensor):
            return False
        if args[0].dim() == 0 or args[1].dim() == 0:  # the native function refuses it
            return False
        first, second = args[0].size(-1), args[1].size(-1)
        if first == 2 * second:
            return False
        if second == 2 * first:
            return True
        raise TypeError(
            f"{name}: the last dimensions are {first} and {second}, expected one to be twice the other: it is input's, "
            "the other out's"
        )

    return is_destination


def _gated_output(input: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    return input.new_empty((*input.shape[:-1], *(size // 2 for size in input.shape[-1:]))) if out is None else out


@two_forms(_second_is_wider("silu_and_mul"), _silu_and_mul)
def silu_and_mul(input: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """The SiLU of the first half of each row times the second half (Shazeer 2020).

        out[..., i] = g / (1 + exp(-g)) · input[..., d + i],  g = input[..., i]

    Args:
      input: [..., 2d], float32, float16 or bfloat16; rows may be strided, the last dimension is dense.
      out: [..., d], of input's dtype, apart from it in memory; made if None.

    Returns:
      out. Also called as silu_and_mul(out, input), which returns None: the wider tensor is the input.

    Raises:
      TypeError: neither tensor is twice as wide as the other.
      ValueError: a shape, dtype, stride or device is not as above.
    """
    out = _gated_output(input, out)
    _silu_and_mul(out, input)
    return out


@two_forms(_second_is_wider("gelu_tanh_and_mul"), _gelu_tanh_and_mul)
def gelu_tanh_and_mul(input: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """silu_and_mul with GELU's tanh approximation in place of SiLU.

        out[..., i] = g/2 · (1 + tanh(√(2/π) · (g + 0.044715 g³))) · input[..., d + i],  g = input[..., i]

    Arguments, result and errors are silu_and_mul's.
    """
    out = _gated_output(input, out)
    _gelu_tanh_and_mul(out, input)
    return out


@two_forms(_second_is_wider("gelu_and_mul"), _gelu_and_mul)
def gelu_and_mul(input: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """silu_and_mul with GELU in place of SiLU.

        out[..., i] = g/2 · (1 + erf(g / √2)) · input[..., d + i],  g = input[..., i]

    Arguments, result and errors are silu_and_mul's.
    """
    out = _gated_output(input, out)
    _gelu_and_mul(out, input)
    return out


def apply_rope_pos_ids_cos_sin_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    q_rope: torch.Tensor,
    k_rope: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    pos_ids: torch.Tensor,
    interleave: bool = False,
    enable_pdl: bool | None = None,
    v: torch.Tensor | None = None,
    k_buffer: torch.Tensor | None = None,
    v_buffer: torch.Tensor | None = None,
    kv_cache_loc: torch.Tensor | None = None,
) -> None:
    """Rotates queries and keys by their positions (Su et al. 2021); and, given v, writes k and v to a cache.

    With the cosine and sine of pair i at the token's position, each pair (x, y) of a head becomes

        x' = x cos - y sin,  y' = y cos + x sin

    and elements from rotary_dim on are copied. Then, if v is given,

        k_buffer[kv_cache_loc[t]] = k_rope[t],  v_buffer[kv_cache_loc[t]] = v[t]

    Args:
      q: [T, Hq, D], float32, float16 or bfloat16; tokens and heads may be strided, D is at most 1024.
      k: [T, Hk, D], of q's dtype.
      q_rope, k_rope: the results, like q and k; they may be q and k themselves.
      cos_sin_cache: [P, rotary_dim], float32: the cosines of a position, then its sines. rotary_dim is even.
      pos_ids: [T], int32 or int64, from 0 to P - 1.
      interleave: pair i is elements (2i, 2i + 1); else (i, i + rotary_dim / 2).
      enable_pdl: programmatic dependent launch; None is True. Ignored before sm_90.
      v: [T, Hk, D]; with it k_buffer and v_buffer, [S, Hk, D], and kv_cache_loc, [T], int32 or int64, from 0 to S - 1.

    Positions and slots out of range are a ValueError; on a GPU they are looked at under SGL_KERNEL_CHECK=1 alone.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
    """
    _apply_rope(
        q,
        k,
        q_rope,
        k_rope,
        cos_sin_cache,
        pos_ids,
        interleave,
        enable_pdl is not False,
        v,
        k_buffer,
        v_buffer,
        kv_cache_loc,
    )


@dataclass
class FusedSetKVBufferArg:
    """What apply_rope_with_cos_sin_cache_inplace needs to write keys and values to a cache.

    value: [T, Hk * head_size], the values that go with the keys.
    k_buffer, v_buffer: [S, Hk * head_size], the caches.
    k_scale, v_scale: None; scaled caches are not supported.
    cache_loc: [T], int32 or int64, the slots.
    """

    value: torch.Tensor
    k_buffer: torch.Tensor
    v_buffer: torch.Tensor
    k_scale: float | None
    v_scale: float | None
    cache_loc: torch.Tensor


def _split_heads(tensor: torch.Tensor, head_size: int) -> torch.Tensor:
    if tensor.dim() == 3:
        return tensor
    return tensor.view(tensor.shape[0], tensor.shape[-1] // head_size, head_size)


def apply_rope_with_cos_sin_cache_inplace(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool = True,
    fused_set_kv_buffer_arg: FusedSetKVBufferArg | None = None,
    enable_pdl: bool | None = None,
) -> None:
    """Rotates query and key in place, and writes keys and values to a cache if asked to.

    The formula is apply_rope_pos_ids_cos_sin_cache's.

    Args:
      positions: [T], int32 or int64.
      query: [T, Hq * head_size] or [T, Hq, head_size], float32, float16 or bfloat16; rows may be strided.
      key: [T, Hk * head_size] or [T, Hk, head_size], of query's dtype.
      head_size: at most 1024.
      cos_sin_cache: [P, rotary_dim], float32: the cosines of a position, then its sines.
      is_neox: pairs are half of rotary_dim apart; else they are neighbours.
      fused_set_kv_buffer_arg: the values, the caches and the slots.
      enable_pdl: programmatic dependent launch; None is True. Ignored before sm_90.

    Raises:
      NotImplementedError: fused_set_kv_buffer_arg has a scale.
      ValueError: a shape, dtype, stride or device is not as above.
    """
    flat = positions.dim() == 1 and cos_sin_cache.dtype == torch.float32
    if flat and fused_set_kv_buffer_arg is None and enable_pdl is not False:
        # The same kernel, behind an operator that takes flat heads (and more): views cost more than all else.
        _rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox)
        return
    query, key = _split_heads(query, head_size), _split_heads(key, head_size)
    v = k_buffer = v_buffer = cache_loc = None
    if (fused := fused_set_kv_buffer_arg) is not None:
        if fused.k_scale is not None or fused.v_scale is not None:
            raise NotImplementedError(
                "apply_rope_with_cos_sin_cache_inplace: fused_set_kv_buffer_arg has k_scale or v_scale, expected None"
            )
        v = _split_heads(fused.value, head_size)
        k_buffer, v_buffer = _split_heads(fused.k_buffer, head_size), _split_heads(fused.v_buffer, head_size)
        cache_loc = fused.cache_loc
    apply_rope_pos_ids_cos_sin_cache(
        query,
        key,
        query,
        key,
        cos_sin_cache,
        positions,
        not is_neox,
        enable_pdl,
        v,
        k_buffer,
        v_buffer,
        cache_loc,
    )


def rotary_embedding(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor | None,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox: bool = True,
) -> None:
    """Rotates query and key in place; the formula is apply_rope_pos_ids_cos_sin_cache's.

    Args:
      positions: [T] or [B, L], int32 or int64.
      query: [..., Hq * head_size] or [..., Hq, head_size] behind the shape of positions; float32, float16 or bfloat16.
      key: likewise with Hk heads, of query's dtype; or None.
      head_size: at most 1024.
      cos_sin_cache: [P, rotary_dim], float32 or of query's dtype: the cosines of a position, then its sines.
      is_neox: pairs are half of rotary_dim apart; else they are neighbours.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
    """
    _rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox)
