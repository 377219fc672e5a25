"""Weights in ggml's block formats, what the gguf package says they are, and products with them."""

import gguf
import numpy as np
import torch

# Type → where its blocks hold f16 numbers. IQ1_M's is scattered: see put_scale().
F16_OFFSETS = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ2_XXS": [0],
    "IQ2_XS": [0],
    "IQ3_XXS": [0],
    "IQ1_S": [0],
    "IQ4_NL": [0],
    "IQ3_S": [0],
    "IQ2_S": [0],
    "IQ4_XS": [0],
    "IQ1_M": [],
}
TYPES = list(F16_OFFSETS)


def number(type: str) -> int:
    return int(gguf.GGMLQuantizationType[type])


def block(type: str) -> tuple[int, int]:
    """Elements and bytes."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]]


def put_scale(blocks: np.ndarray, type: str, scale: np.ndarray) -> None:
    """Sets the f16 numbers of blocks [count, bytes], the second one of a block to another block's."""
    for i, offset in enumerate(F16_OFFSETS[type]):
        blocks[:, offset : offset + 2] = np.roll(scale, i)[:, None].view(np.uint8)
    if type == "IQ1_M":
        words = blocks[:, 48:56].copy().view(np.uint16)
        for i in range(4):
            words[:, i] = (words[:, i] & 0x0FFF) | ((scale.view(np.uint16) >> (4 * i) & 15) << 12)
        blocks[:, 48:56] = words.view(np.uint8)


def random_weight(type: str, row: int, k: int, seed: int = 0) -> torch.Tensor:
    """uint8 [row, bytes of k elements]: random bytes, but for scales of both signs around 0.05."""
    elements, size = block(type)
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (row * (k // elements), size), dtype=np.uint8)
    put_scale(blocks, type, (rng.standard_normal(len(blocks)) * 0.05).astype(np.float16))
    return torch.from_numpy(blocks.reshape(row, k // elements * size))


def dequantized(W: torch.Tensor, type: str) -> torch.Tensor:
    """float32, what the gguf package says."""
    if W.numel() == 0:
        elements, size = block(type)
        return torch.zeros(W.shape[0], W.shape[1] // size * elements)
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.quants.dequantize(W.numpy(), gguf.GGMLQuantizationType[type]))


def groups_of(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (-1, 32))


def quantized(x: torch.Tensor) -> torch.Tensor:
    """x in 8 bits, as ggml.h says, as float64. The divisions and the product are f32's."""
    groups = groups_of(x.float())
    amax = groups.abs().amax(-1, keepdim=True)
    # torch takes 127 / amax for a product with the reciprocal, which rounds twice.
    most = torch.full_like(amax, 127)
    q = (groups * (most / amax)).round()
    return torch.where(amax < 2.0**-100, 0.0, (amax / most).double() * q.double()).flatten(-2)


def group_products(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """For each element of the result the sum of |x| times the largest |w| of its group."""
    if x.shape[-1] == 0:
        return x.new_zeros(x.shape[0], w.shape[0])
    return groups_of(x.abs()).sum(-1) @ groups_of(w.abs().double()).amax(-1).T


def f32_bound(x8: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """What 2^-24 is multiplied by. An element is scale · q + offset, with both terms at most 2 maxima of its group for
    random q, and a sum passes through a rounding a group and a few within one."""
    return 4 * (x8.shape[-1] // 32 + 8) * group_products(x8, w)
