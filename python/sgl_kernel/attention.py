"""Attention, and the merging of its partial results."""

from __future__ import annotations

import torch

from sgl_kernel import _attention as _native
from sgl_kernel._ops import eager_or_traced

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
