"""Activations to 8 bits, with one scale for each group of neighbours within a token."""

from __future__ import annotations

import torch

from sgl_kernel import _quantization as _native
from sgl_kernel._ops import eager_or_traced

__all__ = [
    "sgl_per_token_group_quant_8bit",
    "sgl_per_token_group_quant_fp8",
    "sgl_per_token_group_quant_int8",
]

_plain = eager_or_traced("sgl_per_token_group_quant_8bit", _native.sgl_per_token_group_quant_8bit)
_v2 = eager_or_traced("sgl_per_token_group_quant_8bit_v2", _native.sgl_per_token_group_quant_8bit_v2)


def sgl_per_token_group_quant_8bit(
    input: torch.Tensor,
    output_q: torch.Tensor,
    output_s: torch.Tensor,
    group_size: int,
    eps: float,
    fp8_min: float,
    fp8_max: float,
    scale_ue8m0: bool = False,
    fuse_silu_and_mul: bool = False,
    masked_m: torch.Tensor | None = None,
    enable_v2: bool | None = None,
) -> None:
    """Quantizes to FP8 or INT8 with a scale for each group of neighbours.

        amax     = max(eps, |x|) over the group
        output_s = amax / fp8_max, or with scale_ue8m0 the least power of two that is not below it
        output_q = cast(x · (1 / output_s))        rounded to nearest even, saturated

    x is input, or silu(input[..., :H]) · input[..., H:], rounded to input's dtype. 1 / output_s is reckoned as
    fp8_max / amax.

    Args:
      input: [T, H] or [E, T, H] ([…, 2H] with fuse_silu_and_mul), float32, float16 or bfloat16. Like output_q, dense in
        the last dimension, and starting and stepping by multiples of 16 bytes.
      output_q: [T, H] or [E, T, H], float8_e4m3fn or int8; written.
      output_s: the scales, with any strides (row-major, column-major, padded for TMA); written. float32
        [..., T, H / group_size]; or, with scale_ue8m0 only, int32 [..., T, ceil(H / group_size / 4)]: the exponents of
        four groups in a word (the scale is 2^(byte - 127)), the first in the lowest byte.
      group_size: 16, 32, 64 or 128; divides H.
      eps: what amax is at least, so that zeros have a scale; 1e-30 to 1e30.
      fp8_min, fp8_max: the limits of output_q's dtype: -448 and 448, -128 and 127.
      scale_ue8m0: round the scales up to powers of two; the values are quantized with what was rounded.
      fuse_silu_and_mul: quantize the gated activation of input.
      masked_m: [E] int32: only the first masked_m[e] tokens of input[e] are computed, and nothing is written for the
        others.
      enable_v2: which of the two torch operators does it; None: the first one if it can.

    A NaN makes its group's scale NaN (255 in UE8M0), its FP8 values NaN (0x7f) and its INT8 values 0. An infinity makes
    the scale infinite (255, as NaN), infinities NaN or 0 and the others 0.

    Raises:
      ValueError: a shape, dtype, stride, size or device is not as above.
    """
    arguments = (input, output_q, output_s, group_size, eps, fp8_min, fp8_max, scale_ue8m0)
    if enable_v2 or fuse_silu_and_mul or masked_m is not None:
        _v2(*arguments, fuse_silu_and_mul, masked_m)
    else:
        _plain(*arguments)


sgl_per_token_group_quant_fp8 = sgl_per_token_group_quant_8bit
sgl_per_token_group_quant_int8 = sgl_per_token_group_quant_8bit
