"""Quantized weights from the layouts of checkpoints to Marlin's, once at load time."""

from __future__ import annotations

import torch

from sgl_kernel import _gemm as _native
from sgl_kernel._ops import eager_or_traced, fakes, implements

__all__ = ["awq_marlin_moe_repack", "awq_marlin_repack", "gptq_marlin_repack"]


def _repacked(b_q_weight, size_k, size_n, num_bits):
    # Of a wrong call only the native function's message should be seen.
    return b_q_weight.new_empty((max(size_k // 16, 0), max(size_n * num_bits // 2, 0)))


@fakes("gptq_marlin_repack")
def _fake_gptq_marlin_repack(b_q_weight, perm, size_k, size_n, num_bits):
    return _repacked(b_q_weight, size_k, size_n, num_bits)


@fakes("awq_marlin_repack")
def _fake_awq_marlin_repack(b_q_weight, size_k, size_n, num_bits):
    return _repacked(b_q_weight, size_k, size_n, num_bits)


def _destination(b_q_weight, size_k, size_n, num_bits):
    # Sizes that are not the weight's are refused before the result is looked at: it need not be allocated for them.
    if size_k * size_n * num_bits != 32 * b_q_weight.numel():
        return b_q_weight.new_empty((0, 0))
    return _repacked(b_q_weight, size_k, size_n, num_bits)


@implements("gptq_marlin_repack")
def _gptq_marlin_repack(b_q_weight, perm, size_k, size_n, num_bits):
    result = _destination(b_q_weight, size_k, size_n, num_bits)
    _native.gptq_marlin_repack(result, b_q_weight, perm, size_k, size_n, num_bits)
    return result


@implements("awq_marlin_repack")
def _awq_marlin_repack(b_q_weight, size_k, size_n, num_bits):
    result = _destination(b_q_weight, size_k, size_n, num_bits)
    _native.awq_marlin_repack(result, b_q_weight, size_k, size_n, num_bits)
    return result


_gptq_operator = eager_or_traced("gptq_marlin_repack", _gptq_marlin_repack)
_awq_operator = eager_or_traced("awq_marlin_repack", _awq_marlin_repack)


def gptq_marlin_repack(b_q_weight, perm, size_k, size_n, num_bits) -> torch.Tensor:
    """Repacks a weight in GPTQ's layout for gptq_marlin_gemm.

    Args:
      b_q_weight: int32 [size_k · num_bits / 32, size_n]: a word holds consecutive rows of a column, the first lowest.
      perm: int32 [size_k]: row k of the result is row perm[k] of the weight; or empty.
      size_k: a multiple of 16.
      size_n: a multiple of 64.
      num_bits: 4 or 8.

    Returns:
      int32 [size_k / 16, size_n · num_bits / 2].

    Raises:
      ValueError: another shape, dtype, stride, device or number; a perm out of range (on a GPU under
        SGL_KERNEL_CHECK=1 alone).
    """
    return _gptq_operator(b_q_weight, perm, size_k, size_n, num_bits)


def awq_marlin_repack(b_q_weight: torch.Tensor, size_k: int, size_n: int, num_bits: int) -> torch.Tensor:
    """Repacks a weight in AWQ's layout for gptq_marlin_gemm.

    Args:
      b_q_weight: int32 [size_k, size_n · num_bits / 32]: a word holds consecutive columns of a row, of 4 bits in the
        order 0 2 4 6 1 3 5 7 from the lowest bits on, of 8 bits in the order 0 2 1 3.
      size_k: a multiple of 16.
      size_n: a multiple of 64.
      num_bits: 4 or 8.

    Returns:
      int32 [size_k / 16, size_n · num_bits / 2].

    Raises:
      ValueError: another shape, dtype, stride, device or number.
    """
    return _awq_operator(b_q_weight, size_k, size_n, num_bits)


def awq_marlin_moe_repack(
    b_q_weight: torch.Tensor, perm: torch.Tensor, size_k: int, size_n: int, num_bits: int
) -> torch.Tensor:
    """awq_marlin_repack of each expert's weight.

    Args:
      b_q_weight: int32 [experts, size_k, size_n · num_bits / 32].
      perm: not read; AWQ has no act-order.
      size_k, size_n, num_bits: as in awq_marlin_repack.

    Returns:
      int32 [experts, size_k / 16, size_n · num_bits / 2].

    Raises:
      ValueError: another shape, dtype, stride, device or number.
    """
    if b_q_weight.dim() != 3:
        raise ValueError(f"awq_marlin_moe_repack: b_q_weight has {b_q_weight.dim()} dimensions, expected 3")
    repacked = [awq_marlin_repack(weight, size_k, size_n, num_bits) for weight in b_q_weight]
    return torch.stack(repacked) if repacked else _repacked(b_q_weight, size_k, size_n, num_bits)[None][:0]
