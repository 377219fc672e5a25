"""Norms, gated activations and rotary embeddings."""

from __future__ import annotations

import torch

from sgl_kernel import _elementwise as _native
from sgl_kernel._ops import eager_or_traced, two_forms

__all__ = [
    "fused_add_rmsnorm",
    "gemma_fused_add_rmsnorm",
    "gemma_rmsnorm",
    "rmsnorm",
]

_rmsnorm = eager_or_traced("rmsnorm", _native.rmsnorm)
_fused_add_rmsnorm = eager_or_traced("fused_add_rmsnorm", _native.fused_add_rmsnorm)
_gemma_rmsnorm = eager_or_traced("gemma_rmsnorm", _native.gemma_rmsnorm)
_gemma_fused_add_rmsnorm = eager_or_traced("gemma_fused_add_rmsnorm", _native.gemma_fused_add_rmsnorm)


def _third_is_tensor(args: tuple, kwargs: dict) -> bool:
    """rmsnorm(output, input, weight, …), where the functional form has eps."""
    return "output" in kwargs or (len(args) > 2 and isinstance(args[2], torch.Tensor))


def _rmsnorm_into(output, input, weight, eps=1e-6, enable_pdl=True) -> None:
    _rmsnorm(output, input, weight, eps, enable_pdl)


def _gemma_rmsnorm_into(output, input, weight, eps=1e-6, enable_pdl=True) -> None:
    _gemma_rmsnorm(output, input, weight, eps, enable_pdl)


@two_forms(_third_is_tensor, _rmsnorm_into)
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
    if out is None:
        out = torch.empty_like(input)
    _rmsnorm(out, input, weight, eps, enable_pdl is not False)
    return out


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


@two_forms(_third_is_tensor, _gemma_rmsnorm_into)
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
    if out is None:
        out = torch.empty_like(input)
    _gemma_rmsnorm(out, input, weight, eps, enable_pdl is not False)
    return out


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
