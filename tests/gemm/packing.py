"""Quantized weights in the layouts of checkpoints and of Marlin, written from the formats' descriptions.

Numbers are int64 tensors [K, N]. The permutations are those with which Marlin's authors, GPTQModel and AutoAWQ prepare
weights: lists of indices, made as in their packing code, and not the formulas of the kernels.
"""

import torch

AWQ_ORDER = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}


def to_int32(words: torch.Tensor) -> torch.Tensor:
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def pack_columns(numbers: torch.Tensor, bits: int, order=None) -> torch.Tensor:
    """Along the last dimension, the first (of `order`) lowest; of 3 bits as one string over three words."""
    if bits == 3:
        groups = numbers.unflatten(-1, (-1, 32))
        string = (groups[..., None] >> torch.arange(3) & 1).flatten(-2)
        return to_int32((string.unflatten(-1, (3, 32)) << torch.arange(32)).sum(-1).flatten(-2))
    per_word = 32 // bits
    groups = numbers.unflatten(-1, (-1, per_word))
    if order is not None:
        groups = groups[..., order]
    return to_int32((groups << torch.arange(0, 32, bits)).sum(-1))


def pack_rows(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """GPTQ's weight: along K."""
    return pack_columns(numbers.t(), bits).t().contiguous()


def marlin_permutation(bits: int) -> torch.Tensor:
    """Of the 1024 numbers of a tile of 16 × 64, itself four tiles of 16 × 16 in turn."""
    indices = []
    for lane in range(32):
        of_lane = [
            16 * row + lane // 4 + 8 * block
            for block in (0, 1)
            for row in (2 * (lane % 4), 2 * (lane % 4) + 1, 2 * (lane % 4 + 4), 2 * (lane % 4 + 4) + 1)
        ]
        for tile in range(4):
            indices += [index + 256 * tile for index in of_lane]
    interleave = torch.tensor(AWQ_ORDER[bits])
    return torch.tensor(indices).unflatten(0, (-1, len(interleave)))[:, interleave].flatten()


def marlin_weight(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    k, n = numbers.shape
    tiles = numbers.reshape(k // 16, 16, n // 16, 16).transpose(1, 2).reshape(k // 16, n * 16)
    permuted = tiles.unflatten(-1, (-1, 1024))[..., marlin_permutation(bits)].flatten(-2)
    return pack_columns(permuted, bits)


SCALES_OF_GROUPS = torch.tensor([i + 8 * j for i in range(8) for j in range(8)])
SCALES_OF_COLUMNS = torch.tensor([2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)])


def marlin_scales(scales: torch.Tensor) -> torch.Tensor:
    """[G, N]; one group has another order."""
    order = SCALES_OF_COLUMNS if scales.shape[0] == 1 else SCALES_OF_GROUPS
    return scales.unflatten(-1, (-1, len(order)))[..., order].flatten(-2).contiguous()


def marlin_zeros(zeros: torch.Tensor, bits: int) -> torch.Tensor:
    """int64 [G, N] → int32 [G, N · bits / 32]."""
    permuted = zeros.unflatten(-1, (-1, 64))[..., SCALES_OF_GROUPS].flatten(-2)
    return pack_columns(permuted, bits, AWQ_ORDER[bits])


def marlin_fp4_scales(scales: torch.Tensor) -> torch.Tensor:
    """Non-negative float8_e4m3fn numbers [G, N] → bytes of 5 bits of exponent and 3 of mantissa, of 2⁷ times the scale:
    the upper bits of a float16 less its sign."""
    permuted = marlin_scales(scales.half())
    groups, n = permuted.shape
    pairs = permuted.view(groups // 2, 2, n // 8, 8).transpose(1, 2).reshape(groups, n)
    swapped = pairs.view(-1, 4)[:, [0, 2, 1, 3]].reshape(groups, n)
    return ((swapped * 2**7).view(torch.int16).to(torch.int64) >> 7 & 255).to(torch.uint8).view(torch.float8_e4m3fn)


def shuffled(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """The words of GPTQ's weight for ExLlamaV2: pairs of neighbours 16 bits apart; of 3 bits three words of ten
    numbers, and of two more a bit each."""
    n = numbers.shape[1]
    if bits == 8:
        return pack_rows(numbers, bits)
    if bits != 3:
        half = 16 // bits
        groups = numbers.view(-1, half, 2, n)
        shifts = torch.arange(0, 16, bits)[:, None] + torch.tensor([0, 16])
        return to_int32((groups << shifts[None, :, :, None]).sum((1, 2)))
    groups = numbers.view(-1, 32, n)
    words = torch.zeros(len(groups), 3, n, dtype=torch.int64)
    for word in range(3):
        for i in range(10):
            words[:, word] |= groups[:, 10 * word + i] << 3 * (i // 2) + 16 * (i % 2)
        words[:, word] |= (groups[:, 30] >> word & 1) << 15 | (groups[:, 31] >> word & 1) << 31
    return to_int32(words.flatten(0, 1))
