"""4-bit weights in AWQ's layout."""

from __future__ import annotations

import torch

from sgl_kernel import _quantization as _native
from sgl_kernel._ops import eager_or_traced, fakes, implements

__all__ = ["awq_dequantize"]


@fakes("awq_dequantize")
def _dequantized(qweight, scales, qzeros):
    # The shapes of a wrong call are the native function's to judge; they only must not fail earlier.
    rows, words = qweight.shape if qweight.dim() == 2 else (0, 0)
    return scales.new_empty((rows, 8 * words))


@implements("awq_dequantize")
def _dequantize(qweight, scales, qzeros):
    result = _dequantized(qweight, scales, qzeros)
    _native.awq_dequantize(result, qweight, scales, qzeros)
    return result


_awq_dequantize = eager_or_traced("awq_dequantize", _dequantize)


def awq_dequantize(qweight: torch.Tensor, scales: torch.Tensor, qzeros: torch.Tensor) -> torch.Tensor:
    """Decodes 4-bit weights in AWQ's layout.

        result[k, n] = (q[k, n] - z[k // group_size, n]) · scales[k // group_size, n]      rounded once

    Args:
      qweight: [K, N / 8] int32: q, eight numbers in a word, elements 0 … 7 at bits 0, 16, 4, 20, 8, 24, 12, 28.
      scales: [K / group_size, N], float16 or bfloat16. Its rows say what group_size is.
      qzeros: [K / group_size, N / 8] int32: z, in words like q.

    All are contiguous; scales start at a multiple of 16 bytes.

    Returns:
      [K, N], of scales' dtype.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
    """
    return _awq_dequantize(qweight, scales, qzeros)
