"""sgl_per_tensor_quant_fp8 and sgl_per_token_quant_fp8, bit for bit."""

import pytest
import torch
import torch.nn.functional as F

from tests.harness import Operator, bad_alias, bad_shape, case, operator_tests
from tests.quantization.float8 import E4M3, E4M3_MAX, all_float32, assert_bits, to_e4m3

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
SMALLEST = 2.0**-126
ALIASES = [bad_alias("output_q", "input"), bad_alias("output_s", "input"), bad_alias("output_s", "output_q")]


def scale_of(values: torch.Tensor, dim=None) -> torch.Tensor:
    """float32 → its scale; max() keeps a NaN."""
    amax = values.abs().amax() if dim is None else values.abs().amax(dim)
    return torch.where(amax == 0, 0.0, torch.clamp(amax / 448.0, min=SMALLEST))


def quantized(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return to_e4m3(values * torch.where(scale == 0, 0.0, 1.0 / scale))


class BitExact(Operator):
    def compare(self, case, args, outputs):
        expected = self.reference(case, args)
        for name in outputs:
            assert_bits(name, outputs[name], expected[name])


class PerTensor(BitExact):
    name = "sgl_per_tensor_quant_fp8"
    cases = [
        case(dtype=BF16, shape=(3, 4096), std=1.0),
        case(dtype=F16, shape=(1, 7168), std=3.0),
        case(dtype=F32, shape=(37, 41), std=1e-20),
        case(dtype=BF16, shape=(2, 3, 40), std=1e4),
        case(dtype=F16, shape=(7,), std=1.0),
        case(dtype=F32, shape=(5, 64), std=0.0),
        case(dtype=F32, shape=(5, 64), std=1e-40),  # subnormal
        case(dtype=F16, shape=(5, 64), std=1e-6),
        case(dtype=BF16, shape=(1030, 4104), std=1.0),
        case(dtype=F32, shape=(9, 1024), std=1.0),
        case(dtype=BF16, shape=(16, 4096), std=1.0),
    ]
    empty = [case(dtype=BF16, shape=(0, 64), std=1.0)]
    bad = [bad_shape("output_q", (3, 4095)), bad_shape("output_s", (2,)), *ALIASES]
    misaligned = ("input", "output_q")
    accepts = {"output_s.rank": "one element in any rank"}

    def make(self, case, draw):
        return {
            "input": draw.normal(case.shape, case.dtype, std=case.std),
            "output_q": draw.empty(case.shape, E4M3),
            "output_s": draw.uniform((1,), F32, low=0.01, high=0.02) if self.static else draw.empty((1,), F32),
            "is_static": self.static,
        }

    def reference(self, case, args):
        values = args.input.float()
        if args.input.numel() == 0:
            return {"output_q": values.to(E4M3), "output_s": args.output_s.float()}
        scale = args.output_s.float() if self.static else scale_of(values).reshape(1)
        return {"output_q": quantized(values, scale), "output_s": scale}


class PerToken(BitExact):
    name = "sgl_per_token_quant_fp8"
    # Whole sixteens, one or two a thread, a warp a token or a block; and element by element.
    cases = [
        case(dtype=BF16, rows=3, size=4096, std=1.0),
        case(dtype=F16, rows=129, size=7168, std=3.0),
        case(dtype=F32, rows=5, size=1024, std=1e-37),
        case(dtype=BF16, rows=7, size=16, std=1e4),
        case(dtype=BF16, rows=2, size=20000, std=1.0),
        case(dtype=F16, rows=4, size=100, std=1.0),
        case(dtype=F16, rows=2, size=1, std=1.0),
        case(dtype=F32, rows=2, size=33024, std=1e20),
        case(dtype=F32, rows=3, size=256, std=1e-40),  # subnormal
        case(dtype=F16, rows=3, size=256, std=1e-6),
        case(dtype=BF16, rows=3, size=32768, std=1e-23),
        case(dtype=F32, rows=700, size=2064, std=1.0),
        case(dtype=BF16, rows=700, size=528, std=0.0),
        case(dtype=BF16, rows=2**18 + 1, size=8192, std=1.0, large=True),
    ]
    empty = [case(dtype=BF16, rows=0, size=64, std=1.0), case(dtype=F16, rows=3, size=0, std=1.0)]
    batch = {"input": 0, "output_q": 0, "output_s": 0}
    strided = misaligned = ("input", "output_q")
    bad = [bad_shape("output_q", (3, 4095)), bad_shape("output_s", (4,)), *ALIASES]

    def make(self, case, draw):
        return {
            "input": draw.normal((case.rows, case.size), case.dtype, std=case.std),
            "output_q": draw.empty((case.rows, case.size), E4M3),
            "output_s": draw.empty((case.rows,), F32),
        }

    def reference(self, case, args):
        values = args.input.float()
        if values.numel() == 0:
            return {"output_q": values.to(E4M3), "output_s": args.output_s.float()}
        scale = scale_of(values, dim=1)
        return {"output_q": quantized(values, scale[:, None]), "output_s": scale}


test_fp8_quant = operator_tests(
    PerTensor(static=False),
    PerTensor(static=True, inout=("output_s",)),
    PerToken(),
)


@pytest.mark.parametrize("device", DEVICES)
def test_every_rounding(device):
    """With a scale of 1, all bfloat16 values, their float32 neighbours and the ties between e4m3 values."""
    import sgl_kernel

    finite = torch.arange(0x7F, dtype=torch.uint8).view(E4M3).float()
    ties = (finite[1:] + finite[:-1]) / 2
    values = all_float32(around=[*ties, *-ties])
    q = torch.empty(values.shape, dtype=E4M3, device=device)
    sgl_kernel.sgl_per_tensor_quant_fp8(values.to(device), q, torch.ones(1, device=device), True)
    assert_bits("output_q", q, to_e4m3(values))
    # The same of each token's own scale: 448 is its largest value.
    values = F.pad(values[values.abs() <= E4M3_MAX], (1, 0), value=E4M3_MAX)
    q = torch.empty(1, len(values), dtype=E4M3, device=device)
    sgl_kernel.sgl_per_token_quant_fp8(values[None].to(device), q, torch.empty(1, device=device))
    assert_bits("output_q", q[0], to_e4m3(values))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("given", [0.0, 1e-40, 2.0**-149, -0.5, 3e38, float("inf"), float("nan")])
def test_any_given_scale(device, given):
    """0 gives zeros; what overflows saturates; NaN, and 0 times infinity, are NaN."""
    import sgl_kernel

    x = torch.randn(3, 1000, dtype=BF16)
    x[0, :4] = torch.tensor([0.0, float("inf"), float("-inf"), float("nan")])
    scale = torch.full((1,), given)
    q, scale_there = torch.empty(x.shape, dtype=E4M3, device=device), scale.to(device)
    sgl_kernel.sgl_per_tensor_quant_fp8(x.to(device), q, scale_there, True)
    assert_bits("output_q", q, quantized(x.float(), scale))
    assert_bits("output_s", scale_there, scale)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("size", [256, 1000, 4096])
def test_not_finite(device, dtype, size):
    """A NaN or an infinity shows in its own token's scale, and in no other's; a token of zeros is zeros."""
    import sgl_kernel

    x = torch.randn(6, size, dtype=dtype)
    x[0, 3] = x[2, size - 1] = float("nan")
    x[1, 5] = float("-inf")
    x[2, 7] = float("inf")
    x[3] = 0.0
    x[4] = x[4].sign() * torch.finfo(dtype).tiny
    q = torch.empty(x.shape, dtype=E4M3, device=device)
    scale = torch.empty(6, device=device)
    sgl_kernel.sgl_per_token_quant_fp8(x.to(device), q, scale)
    expected = scale_of(x.float(), dim=1)
    assert_bits("output_s", scale, expected)
    assert_bits("output_q", q, quantized(x.float(), expected[:, None]))
    assert scale[:4].isfinite().tolist() == [False, False, False, True] and scale[3] == 0
    per_tensor = torch.full((1,), -1.0, device=device)
    sgl_kernel.sgl_per_tensor_quant_fp8(x.to(device), q, per_tensor, False)
    assert per_tensor.isnan() and (q.view(torch.uint8) == 0x7F).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("std", [1e-36, 1e-30, 1e-23, 1.0, 1e20])
def test_error_is_half_a_step(device, std):
    """|x - q · scale| is at most half of e4m3's distance there: 2^-4 of x, or 2^-10 of the scale below its normals."""
    import sgl_kernel

    x = torch.randn(16, 4096) * std
    q, scale = torch.empty(x.shape, dtype=E4M3, device=device), torch.empty(16, 1, device=device)
    sgl_kernel.sgl_per_token_quant_fp8(x.to(device), q, scale)
    x, s = x.double(), scale.cpu().double()
    error = (q.cpu().double() * s - x).abs()
    assert (error <= (1 + 1e-5) * torch.maximum(x.abs() / 16, s * 2.0**-10)).all()
