"""Operands that random numbers are not: what models really have, and what is hardest for a sum."""

import torch


def activations(draw, shape, kind=None):
    """float32 [..., rows, K], of a normal distribution unless `kind` says otherwise:

    "outliers": some channels are a hundred times larger, as those of language models.
    "positive": the running sum is the sum of the magnitudes, and what each addition loses adds up.
    "cancelling": the second half of K takes away what the first half adds, given the weights() of that kind.
    "tiny": most are below 2^-14 and so subnormal in float16.
    """
    values = draw.normal(shape, torch.float32)
    half = shape[-1] // 2
    if kind == "tiny":
        values *= 2.0**-15
    elif kind == "outliers":
        values[..., 5::61] *= 100
    elif kind == "positive":
        values.abs_()
    elif kind == "cancelling":
        values[..., half : 2 * half] = -values[..., :half]
    return values


def weights(draw, shape, kind=None):
    """float32 [..., N, K], to be multiplied with the activations() of that kind."""
    values = draw.normal(shape, torch.float32)
    half = shape[-1] // 2
    if kind == "positive":
        values.abs_()
    elif kind == "cancelling":
        values[..., half : 2 * half] = values[..., :half]
    return values


def repeated(rows, kind=None):
    """[K or groups, N]: a packed weight, its scales or zero points, for the activations() of that kind."""
    half = rows.shape[0] // 2
    return torch.cat([rows[:half], rows[:half]]) if kind == "cancelling" else rows
