"""How close is right.

An operator computes in f32 and rounds once to the dtype of its output. Against the float64 reference r that allows

    |out - r| <= dtype_roundings * u * |r|  +  f32_roundings * 2^-24 * magnitude  +  s

u is the unit roundoff of the output's dtype (torch.finfo.eps / 2) and s half of its smallest step. f32_roundings counts
the roundings in a row that a sum's element passes through (a tree over D terms: log2(D), and what each thread adds
alone), each relative to `magnitude`. That is |r|, or for a sum with cancellation what the reference states as
`Expected(value, magnitude)`: the sum of the absolute terms. Integers, bools and bits are exact. A NaN or an infinity
must be one in the reference, and the same.
"""

from dataclasses import dataclass

import torch

F32_ROUNDOFF = 2.0**-24


@dataclass
class Expected:
    value: torch.Tensor
    magnitude: torch.Tensor | None = None


def assert_close(name, actual, expected, dtype_roundings=1, f32_roundings=32):
    if not isinstance(expected, Expected):
        expected = Expected(expected)
    value = expected.value
    assert tuple(actual.shape) == tuple(value.shape), f"{name}: shape {[*actual.shape]}, expected {[*value.shape]}"
    actual = actual.detach().cpu()
    if not actual.dtype.is_floating_point:
        wrong = actual.to(torch.int64) != value.to(torch.int64)
        _assert_none(name, wrong, actual, value, None)
        return
    info = torch.finfo(actual.dtype)
    actual = actual.double()
    value = value.double()
    magnitude = value.abs() if expected.magnitude is None else expected.magnitude.double()
    bound = (
        dtype_roundings * info.eps / 2 * value.abs()
        + f32_roundings * F32_ROUNDOFF * magnitude
        + info.smallest_normal * info.eps / 2
    )
    finite = value.isfinite() & (value.abs() <= info.max)
    same = (actual == value.clamp(-info.max, info.max)) | (actual == value) | (actual.isnan() & value.isnan())
    overflow = ~finite & ~value.isnan() & actual.isinf() & (actual.sign() == value.sign())
    wrong = torch.where(finite, ~((actual - value).abs() <= bound), ~(same | overflow))
    _assert_none(name, wrong, actual, value, bound)


def assert_same_bits(name, actual, expected):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, f"{name}: another shape or dtype"
    # A clone: contiguous() keeps whatever stride a dimension of one element has.
    whole = (t.detach().cpu().clone(memory_format=torch.contiguous_format) for t in (actual, expected))
    a, b = (t.reshape(-1).view(torch.uint8) for t in whole)
    if not torch.equal(a, b):
        element = int((a != b).nonzero()[0]) // actual.element_size()
        raise AssertionError(f"{name}: other bits at element {element} of {[*actual.shape]}")


def _assert_none(name, wrong, actual, expected, bound):
    if not wrong.any():
        return
    at = tuple(wrong.nonzero()[0].tolist())
    text = f"{name}: {int(wrong.sum())} of {wrong.numel()} elements are wrong; the first, {[*at]}, is {actual[at]}, "
    text += f"expected {expected[at]}"
    if bound is not None:
        text += f" ± {float(bound[at]):.3g}"
        error = torch.where(wrong, (actual - expected).abs() / bound, 0.0).nan_to_num(float("inf"))
        worst = error.argmax()
        text += f"; the worst is {float(error.flatten()[worst]):.3g} times what is allowed"
    raise AssertionError(text)
