"""dsv3_fused_a_gemm and dsv3_router_gemm, against products in float64."""

import pytest
import torch

from tests.gemm.hard_data import activations, weights
from tests.harness import Expected, Operator, assert_same_bits, bad_alias, bad_shape, case, operator_tests

BF16, F32 = torch.bfloat16, torch.float32
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]

SHAPES = [
    (5, 40, 272),
    (1, 256, 7168),
    (16, 384, 1024),
    (2, 2112, 512),
    (12, 1060, 4608),
    (16, 600, 1024),
    # So many columns that K is not split.
    (3, 2150, 512),
    (9, 2150, 512),
    (17, 23, 4608),
    (100, 9, 64),
    # Rows that loads of 16 bytes do not take; nothing to add.
    (3, 8, 77),
    (1, 1, 1),
    (2, 5, 0),
]


# M, N, K, what a and b are like (see hard_data.py), and how large a is.
HARD = [
    (3, 24, 32768, "positive", 1.0),
    (16, 24, 7168, "cancelling", 1.0),
    (17, 40, 1024, "outliers", 1.0),
    (2, 40, 512, None, 1e-23),
    (2, 40, 512, None, 1e-39),  # subnormal
]


class SkinnyMm(Operator):
    is_transposed = False  # whether mat_b is [N, K]
    cases = [case(m=m, n=n, k=k, out=BF16) for m, n, k in SHAPES]
    cases += [case(m=m, n=n, k=k, out=BF16, data=data, scale=scale) for m, n, k, data, scale in HARD]
    empty = [case(m=0, n=16, k=32, out=BF16), case(m=3, n=0, k=32, out=BF16)]
    batch = {"mat_a": 0, "output": 0}
    strided = ("mat_a", "output")
    misaligned = ("mat_a", "mat_b", "output")
    bad = [
        bad_shape("mat_a", (5, 271), names="mat_b"),
        bad_shape("output", (5, 41)),
        bad_alias("output", "mat_a"),
        bad_alias("output", "mat_b"),
        bad_shape("mat_b", (272, 40)),
    ]

    def make(self, case, draw):
        data = getattr(case, "data", None)
        b = weights(draw, (case.n, case.k), data).to(BF16)
        return {
            "output": draw.empty((case.m, case.n), case.out),
            "mat_a": (activations(draw, (case.m, case.k), data) * getattr(case, "scale", 1.0)).to(BF16),
            "mat_b": b if self.is_transposed else b.t(),
        }

    def reference(self, case, args):
        a, b = args.mat_a.double(), args.mat_b.double()
        b = b.t() if self.is_transposed else b
        # Sums of one sign lose on a GPU's tensor cores, which cut off, at every step.
        return {"output": Expected(a @ b, a.abs() @ b.abs() * (1 + case.k / 2**12))}


class FusedA(SkinnyMm):
    # The last row is no transpose of a dense matrix.
    bad = [*SkinnyMm.bad[:-1], bad_shape("mat_b", (272, 41), names="mat_b|output"), bad_shape("mat_b", (271, 40))]
    forms = {
        "functional": lambda sgl_kernel, args: {"output": sgl_kernel.dsv3_fused_a_gemm(args["mat_a"], args["mat_b"])}
    }

    def python(self, sgl_kernel, args):
        output, a, b = args.values()
        sgl_kernel.dsv3_fused_a_gemm(a, b, output)


class Router(SkinnyMm):
    is_transposed = True
    cases = [case(m=m, n=n, k=k, out=BF16 if i % 2 else F32) for i, (m, n, k) in enumerate(SHAPES)]
    cases += [case(m=m, n=n, k=k, out=F32, data=data, scale=scale) for m, n, k, data, scale in HARD]
    bad = [*SkinnyMm.bad[:-1], bad_shape("mat_b", (40, 271))]

    forms = {
        "functional": lambda sgl_kernel, args: {
            "output": sgl_kernel.dsv3_router_gemm(args["mat_a"], args["mat_b"], args["output"].dtype)
        }
    }

    def python(self, sgl_kernel, args):
        # The Python function has no destination form.
        torch.ops.sgl_kernel.dsv3_router_gemm(*args.values())


test_skinny_mm = operator_tests(FusedA(name="dsv3_fused_a_gemm"), Router(name="dsv3_router_gemm"))


@pytest.mark.parametrize("device", DEVICES)
def test_router_gemm_returns_bfloat16_unless_told(device):
    import sgl_kernel

    a, b = (torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows)).to(BF16).to(device) for rows in (3, 8))
    result = sgl_kernel.dsv3_router_gemm(a, b)
    wide = sgl_kernel.dsv3_router_gemm(a, b, torch.float32)
    assert result.dtype == BF16
    assert_same_bits("rounded", wide.to(BF16), result)


@pytest.mark.parametrize("device", DEVICES)
def test_nan_and_infinity_stay_in_their_row(device):
    import sgl_kernel

    a, b = torch.ones(3, 64, dtype=BF16), torch.ones(24, 64, dtype=BF16)
    a[1, 5], b[7, 9] = float("nan"), float("inf")
    result = sgl_kernel.dsv3_router_gemm(a.to(device), b.to(device), torch.float32).cpu()
    assert result[1].isnan().all()
    expected = torch.full((2, 24), 64.0)
    expected[:, 7] = float("inf")
    assert torch.equal(result[[0, 2]], expected)
