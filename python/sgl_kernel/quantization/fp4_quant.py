"""Activations to NVFP4: 4-bit floats e2m1 with an e4m3 scale for each 16 neighbours."""

from __future__ import annotations

import math

import torch

from sgl_kernel import _quantization as _native
from sgl_kernel._ops import eager_or_traced, two_forms

__all__ = [
    "scaled_fp4_experts_quant",
    "scaled_fp4_grouped_quant",
    "scaled_fp4_quant",
    "silu_and_mul_scaled_fp4_grouped_quant",
]

_scaled_fp4_quant = eager_or_traced("scaled_fp4_quant", _native.scaled_fp4_quant)
_scaled_fp4_experts_quant = eager_or_traced("scaled_fp4_experts_quant", _native.scaled_fp4_experts_quant)
_silu_and_mul_scaled_fp4_experts_quant = eager_or_traced(
    "silu_and_mul_scaled_fp4_experts_quant", _native.silu_and_mul_scaled_fp4_experts_quant
)

_TILE_ROWS = 128  # of a tile of scales


def _whole_tiles(rows: int) -> int:
    return (rows + _TILE_ROWS - 1) // _TILE_ROWS * _TILE_ROWS


def _scale_words(k: int) -> int:
    """Words of int32 for a row's scales."""
    return (k + 63) // 64


def _check_rank(name: str, argument: str, tensor: torch.Tensor, expected: int) -> None:
    if tensor.dim() != expected:
        raise ValueError(f"{name}: {argument} has {tensor.dim()} dimensions, expected {expected}")


def _into(output, input, output_scale, input_scale) -> None:
    _scaled_fp4_quant(output, input, output_scale, input_scale)


@two_forms(lambda args, kwargs: len(args) == 4 or "output" in kwargs, _into)
def scaled_fp4_quant(input: torch.Tensor, input_global_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes to NVFP4.

        amax   = max |x| over 16 neighbours of a row
        scale  = e4m3(global · (amax · (1/6)))                  rounded to nearest even, at most 448
        value  = e2m1(x · (1 / (scale · (1 / global))))         likewise, at most 6 in magnitude; 0 where scale is 0

    so that x is about value · scale / global, and global = 448 · 6 / max |x| uses the whole range. A NaN makes its
    scale NaN (0x7f), and its 16 values 0; an infinity counts as the largest number.

    Args:
      input: [..., K], float16 or bfloat16; K is a multiple of 16. M is the number of its rows, which start at multiples
        of 16 bytes.
      input_global_scale: float32, one element: global.

    Returns:
      (values, scales): uint8 [M, K / 2], two values a byte, the first in the low bits; and float8_e4m3fn
      [ceil(M / 128) · 128, ceil(K / 64) · 4], in the order that tensor cores read: tiles of 128 rows by 4 scales, row
      after row of tiles; scale (m, k) of a tile is its byte m % 32 · 16 + m // 32 · 4 + k. What only fills up a tile is
      0. Also called as scaled_fp4_quant(output, input, output_scale, input_scale), with output_scale as int32 words,
      which returns None.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
    """
    if input.dim() != 2 and input.dim() > 0:
        input = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
    rows, k = input.shape if input.dim() == 2 else (0, 0)  # the native function refuses a scalar
    output = input.new_empty((rows, k // 2), dtype=torch.uint8)
    output_scale = input.new_empty((_whole_tiles(rows), _scale_words(k)), dtype=torch.int32)
    _scaled_fp4_quant(output, input, output_scale, input_global_scale)
    return output, output_scale.view(torch.float8_e4m3fn)


def _experts_into(
    output,
    output_scale,
    input,
    input_global_scale,
    input_offset_by_experts,
    output_scale_offset_by_experts,
) -> None:
    _scaled_fp4_experts_quant(
        output, output_scale, input, input_global_scale, input_offset_by_experts, output_scale_offset_by_experts
    )


@two_forms(
    lambda args, kwargs: "output" in kwargs or (len(args) > 4 and isinstance(args[4], torch.Tensor)), _experts_into
)
def scaled_fp4_experts_quant(
    input_tensor: torch.Tensor,
    input_global_scale: torch.Tensor,
    expert_offsets: torch.Tensor,
    blockscale_offsets: torch.Tensor,
    topk: int,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes rows that are sorted by expert to NVFP4, see scaled_fp4_quant, an expert's scales in tiles of its own.

    Args:
      input_tensor: [M, K], as scaled_fp4_quant's.
      input_global_scale: [E] float32: global of each expert.
      expert_offsets: [E + 1] int32: expert e has the rows expert_offsets[e] … expert_offsets[e + 1] - 1, ascending.
      blockscale_offsets: [E + 1] int32: its scales begin at that row of the result, a multiple of 128, and reach over
        whole tiles; those of the next expert lie behind them.
      topk: the experts of a token; only with expert_map.
      expert_map: [M · topk] int32 or int64, the row of input_tensor for each sorted row; None: they are sorted.

    Returns:
      (values, scales): uint8 [rows, K / 2], and float8_e4m3fn [R, ceil(K / 64) · 4], R being what E experts may need
      for so many rows: blockscale_offsets that waste no tile fit. Scales of no row are undefined.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above, or an offset is not (on a GPU under
        SGL_KERNEL_CHECK=1 alone). An expert_map out of range is torch's error.
    """
    _check_rank("scaled_fp4_experts_quant", "input_tensor", input_tensor, 2)
    if expert_map is not None:
        if expert_map.shape != (input_tensor.shape[0] * topk,):
            raise ValueError(
                f"scaled_fp4_experts_quant: expert_map has shape {[*expert_map.shape]}, expected "
                f"[{input_tensor.shape[0] * topk}] (= input_tensor.shape[0] * topk)"
            )
        input_tensor = input_tensor.index_select(0, expert_map)
    rows, k = input_tensor.shape
    output = input_tensor.new_empty((rows, k // 2), dtype=torch.uint8)
    scale_rows = _whole_tiles(rows + min(rows, input_global_scale.numel()) * (_TILE_ROWS - 1))
    output_scale = input_tensor.new_empty((scale_rows, _scale_words(k)), dtype=torch.int32)
    _scaled_fp4_experts_quant(
        output, output_scale, input_tensor, input_global_scale, expert_offsets, blockscale_offsets
    )
    return output, output_scale.view(torch.float8_e4m3fn)


def _grouped(name, input_tensor, input_global_scale, mask, use_silu_and_mul):
    _check_rank(name, "input_tensor", input_tensor, 3)
    groups, rows, width = input_tensor.shape
    # The native function sees the rows of all groups as one matrix: as many as there are scales share it out.
    for argument, tensor in (("input_global_scale", input_global_scale), ("mask", mask)):
        if tensor.shape != (groups,):
            raise ValueError(
                f"{name}: {argument} has shape {[*tensor.shape]}, expected [{groups}] (= input_tensor.shape[0])"
            )
    k = width // 2 if use_silu_and_mul else width
    padded_rows, words = _whole_tiles(rows), _scale_words(k)
    output = input_tensor.new_empty((groups, rows, k // 2), dtype=torch.uint8)
    output_scales = input_tensor.new_empty((groups, padded_rows, words), dtype=torch.int32)
    _silu_and_mul_scaled_fp4_experts_quant(
        output.view(groups * rows, k // 2),
        output_scales.view(groups * padded_rows, words),
        input_tensor.reshape(groups * rows, width),
        input_global_scale,
        mask,
        use_silu_and_mul,
    )
    tiles = output_scales.view(torch.float8_e4m3fn).view(groups, padded_rows // _TILE_ROWS, words, 32, 4, 4)
    return output.permute(1, 2, 0), tiles.permute(3, 4, 1, 5, 2, 0)


def scaled_fp4_grouped_quant(
    input_tensor: torch.Tensor, input_global_scale: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes groups of rows to NVFP4, see scaled_fp4_quant.

    Args:
      input_tensor: [L, M, K], as scaled_fp4_quant's.
      input_global_scale: [L] float32: global of each group.
      mask: [L] int32: of group l the first mask[l] rows are quantized; what belongs to the others is undefined.

    Returns:
      (values, scales), as views that a masked grouped product takes: uint8 [M, K / 2, L], in memory [L, M, K / 2]; and
      float8_e4m3fn [32, 4, ceil(M / 128), 4, ceil(K / 64), L], in memory [L, ceil(M / 128), ceil(K / 64), 32, 4, 4].

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
    """
    return _grouped("scaled_fp4_grouped_quant", input_tensor, input_global_scale, mask, False)


def silu_and_mul_scaled_fp4_grouped_quant(
    input_tensor: torch.Tensor, input_global_scale: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """scaled_fp4_grouped_quant of the gated activation silu(input[..., :K]) · input[..., K:].

    Args:
      input_tensor: [L, M, 2 K], float16 or bfloat16; K is a multiple of 16. The activation is rounded to this dtype
        before it is quantized.
      input_global_scale, mask: as for scaled_fp4_grouped_quant, as are result and errors.
    """
    return _grouped("silu_and_mul_scaled_fp4_grouped_quant", input_tensor, input_global_scale, mask, True)
