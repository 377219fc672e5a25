"""Operands that random numbers are not: what models really have, and what is hardest for a sum."""

import torch


def activations(draw, shape, kind=None):
    """float32 [..., rows, K], of a normal distribution unless `kind` says otherwise:

    "outliers": some channels are a hundred times larger, as those of language models.
    "positive": the running sum is the sum of the magnitudes, and what each addition loses adds up.
    "cancelling": the second half of K takes away what the first half adds, given the weights() of that kind.
    """
    values = draw.normal(shape, torch.float32)
    half = shape[-1] // 2
    if kind == "outliers":
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
