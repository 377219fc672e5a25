"""Float8 and scales as the references need them: in float32 and integers, step by step, independent of the kernels."""

import torch

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0


def to_e4m3(values: torch.Tensor) -> torch.Tensor:
    """float32 → e4m3: to the nearest even, saturated; NaN is 0x7f."""
    bits = values.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3).view(torch.uint8)
    return torch.where(values.isnan(), 0x7F, bits).to(torch.uint8).view(E4M3)


def to_int8(values: torch.Tensor) -> torch.Tensor:
    """float32 → int8: to the nearest even, saturated; NaN is 0."""
    return values.nan_to_num(0.0, float("inf"), float("-inf")).clamp(-128, 127).round().to(torch.int8)


def all_float32(around=()) -> torch.Tensor:
    """Every float32 whose low 16 bits are 0, that is every bfloat16, with its neighbours; and more."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    bits = torch.cat([bits, bits + 1, bits - 1])
    return torch.cat([bits.view(torch.float32), torch.tensor(list(around))])


def assert_bits(name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The same bits, but any NaN for a NaN of float32."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, (
        f"{name}: {actual.dtype} {[*actual.shape]}, expected {expected.dtype} {[*expected.shape]}"
    )
    a, b = actual.detach().cpu().contiguous(), expected.contiguous()
    if a.dtype == torch.float32:
        a, b = (torch.where(t.isnan(), torch.nan, t).view(torch.int32) for t in (a, b))
    elif a.dtype == E4M3:
        a, b = a.view(torch.uint8), b.view(torch.uint8)
    if not torch.equal(a, b):
        wrong = (a != b).nonzero()
        at = tuple(wrong[0].tolist())
        raise AssertionError(
            f"{name}: {len(wrong)} of {a.numel()} elements differ; the first, {[*at]}, is "
            f"{actual.cpu()[at].item()} ({a[at].item():#x}), expected {expected[at].item()} ({b[at].item():#x})"
        )
