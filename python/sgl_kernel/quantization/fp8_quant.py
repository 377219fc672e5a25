"""Activations to float8 e4m3fn, with one scale for the tensor or for each token."""

from __future__ import annotations

import torch

from sgl_kernel import _quantization as _native
from sgl_kernel._ops import eager_or_traced, implements

__all__ = ["sgl_per_tensor_quant_fp8", "sgl_per_token_quant_fp8"]

_WORKSPACE_BYTES = _native.sgl_per_tensor_quant_fp8_workspace_size()


@implements("sgl_per_tensor_quant_fp8")
def _per_tensor(input, output_q, output_s, is_static):
    workspace = input.new_empty(0 if is_static else _WORKSPACE_BYTES, dtype=torch.uint8)
    _native.sgl_per_tensor_quant_fp8(workspace, input, output_q, output_s, is_static)


_sgl_per_tensor_quant_fp8 = eager_or_traced("sgl_per_tensor_quant_fp8", _per_tensor)
_sgl_per_token_quant_fp8 = eager_or_traced("sgl_per_token_quant_fp8", _native.sgl_per_token_quant_fp8)


def sgl_per_tensor_quant_fp8(
    input: torch.Tensor, output_q: torch.Tensor, output_s: torch.Tensor, is_static: bool
) -> None:
    """Quantizes a tensor to FP8 with one scale, given or found.

        output_q[i] = e4m3(input[i] · (1 / output_s))        rounded to nearest even, saturated at ±448
        output_s    = max |input| / 448                      unless is_static

    Args:
      input: any shape, float32, float16 or bfloat16, contiguous.
      output_q: float8_e4m3fn, like input; written.
      output_s: float32, one element; the scale, read if is_static, else written, whatever it held. A found one is at
        least 2^-126, and 0 for a tensor of zeros.
      is_static: whether output_s is given; 0 gives zeros.

    A NaN among the elements makes a found scale and every result NaN (0x7f); an infinity makes it infinite, infinities
    NaN and the others 0.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
    """
    _sgl_per_tensor_quant_fp8(input, output_q, output_s, is_static)


def sgl_per_token_quant_fp8(input: torch.Tensor, output_q: torch.Tensor, output_s: torch.Tensor) -> None:
    """Quantizes each token to FP8 with a scale of its own.

        output_s[t]    = max_d |input[t, d]| / 448
        output_q[t, d] = e4m3(input[t, d] · (1 / output_s[t]))        rounded to nearest even, saturated at ±448

    Args:
      input: [T, D], float32, float16 or bfloat16; rows may be strided, the last dimension is dense.
      output_q: [T, D], float8_e4m3fn; likewise; written.
      output_s: [T] or [T, 1], float32, contiguous; written. At least 2^-126, and 0 for a token of zeros.

    A NaN among a token's elements makes its scale and all its results NaN (0x7f); an infinity makes the scale infinite,
    infinities NaN and the others 0.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
    """
    _sgl_per_token_quant_fp8(input, output_q, output_s)
