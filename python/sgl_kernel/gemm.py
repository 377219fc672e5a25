"""Products of quantized matrices.

mat_b is column-major everywhere: [K, N] with stride(0) == 1, the transpose of a weight as it is stored.
"""

from __future__ import annotations

import torch

from sgl_kernel import _gemm as _native
from sgl_kernel._ops import eager_or_traced, fakes, implements

__all__ = ["fp8_blockwise_scaled_mm", "fp8_scaled_mm", "int8_scaled_mm"]


def _product(mat_a, mat_b, out_dtype):
    # The shapes of a wrong call are the native function's to judge; they only must not fail earlier.
    rows = mat_a.shape[0] if mat_a.dim() > 0 else 0
    columns = mat_b.shape[-1] if mat_b.dim() > 0 else 0
    return mat_a.new_empty((rows, columns), dtype=out_dtype)


@fakes("int8_scaled_mm")
@fakes("fp8_scaled_mm")
def _fake_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype, bias):
    return _product(mat_a, mat_b, out_dtype)


@fakes("fp8_blockwise_scaled_mm")
def _fake_fp8_blockwise_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype):
    return _product(mat_a, mat_b, out_dtype)


@implements("fp8_scaled_mm")
def _fp8_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype, bias):
    output = _product(mat_a, mat_b, out_dtype)
    _native.fp8_scaled_mm(output, mat_a, mat_b, scales_a, scales_b, bias)
    return output


@implements("int8_scaled_mm")
def _int8_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype, bias):
    output = _product(mat_a, mat_b, out_dtype)
    _native.int8_scaled_mm(output, mat_a, mat_b, scales_a, scales_b, bias)
    return output


@implements("fp8_blockwise_scaled_mm")
def _fp8_blockwise_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype):
    output = _product(mat_a, mat_b, out_dtype)
    _native.fp8_blockwise_scaled_mm(output, mat_a, mat_b, scales_a, scales_b)
    return output


_fp8_operator = eager_or_traced("fp8_scaled_mm", _fp8_scaled_mm)
_int8_operator = eager_or_traced("int8_scaled_mm", _int8_scaled_mm)
_blockwise_operator = eager_or_traced("fp8_blockwise_scaled_mm", _fp8_blockwise_scaled_mm)


def fp8_scaled_mm(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    scales_a: torch.Tensor,
    scales_b: torch.Tensor,
    out_dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiplies e4m3 matrices with a scale for each row of A and each column of B, or one for all.

        result[i, j] = scales_a[i] · scales_b[j] · Σ_l mat_a[i, l] · mat_b[l, j] + bias[j]

    Args:
      mat_a: [M, K], float8_e4m3fn; rows may be strided, the last dimension is dense.
      mat_b: [K, N], float8_e4m3fn, column-major; columns may be strided.
      scales_a: float32, M numbers or one.
      scales_b: float32, N numbers or one.
      out_dtype: float16 or bfloat16.
      bias: [N], out_dtype, or None.

    Returns:
      [M, N], out_dtype. On Hopper the sum is off by at most 2⁻¹² · Σ_l |mat_a[i, l] · mat_b[l, j]| (K up to 32768); on
      other devices it is float32's. NaN in a row or column makes its results NaN; beyond the range they are infinite.

    Raises:
      ValueError: another shape, dtype, stride or device.
    """
    return _fp8_operator(mat_a, mat_b, scales_a, scales_b, out_dtype, bias)


def int8_scaled_mm(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    scales_a: torch.Tensor,
    scales_b: torch.Tensor,
    out_dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """fp8_scaled_mm for int8 matrices. The sum is exact in int32; K is at most 131071."""
    return _int8_operator(mat_a, mat_b, scales_a, scales_b, out_dtype, bias)


def fp8_blockwise_scaled_mm(
    mat_a: torch.Tensor, mat_b: torch.Tensor, scales_a: torch.Tensor, scales_b: torch.Tensor, out_dtype: torch.dtype
) -> torch.Tensor:
    """Multiplies e4m3 matrices with a scale for each 128 elements of a row of A, and each 128 × 128 of B.

        result[i, j] = Σ_g scales_a[i, g] · scales_b[g, j // 128] · Σ_{l // 128 == g} mat_a[i, l] · mat_b[l, j]

    Args:
      mat_a: [M, K], float8_e4m3fn; rows may be strided, the last dimension is dense.
      mat_b: [K, N], float8_e4m3fn, column-major; columns may be strided.
      scales_a: [M, ceil(K / 128)], float32, any strides.
      scales_b: [ceil(K / 128), ceil(N / 128)], float32, any strides.
      out_dtype: float16 or bfloat16.

    Returns:
      [M, N], out_dtype. Groups are added in float32; the sum of one is as exact as fp8_scaled_mm's.

    Raises:
      ValueError: another shape, dtype, stride or device.
    """
    return _blockwise_operator(mat_a, mat_b, scales_a, scales_b, out_dtype)
