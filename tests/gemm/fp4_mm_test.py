"""cutlass_scaled_fp4_mm, against products in float64 of matrices that are decoded by their description."""

import pytest
import torch

from tests.gemm.hard_data import repeated
from tests.harness import Bad, Expected, Operator, bad_alias, bad_shape, case, operator_tests

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
FP8 = torch.float8_e4m3fn
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def ceil_div(a, b):
    return -(-a // b)


def scale_shape(rows, k):
    return (ceil_div(rows, 128) * 128, ceil_div(k, 64) * 4)


def swizzled(scales):
    """Scales [rows, blocks] in tiles of 128 x 4, of whose rows every 32nd are neighbours; 0x7f, NaN, elsewhere."""
    rows, blocks = scales.shape
    shape = scale_shape(rows, 16 * blocks)
    padded = torch.full(shape, 0x7F, dtype=torch.uint8)
    padded[:rows, :blocks] = scales.cpu().view(torch.uint8)
    tiles = padded.view(shape[0] // 128, 4, 32, shape[1] // 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(shape).view(FP8)


def unswizzled(scales, rows, blocks):
    """The first rows and blocks of such tiles, by the formula of each byte."""
    row, block = torch.arange(rows)[:, None], torch.arange(blocks)[None, :]
    tile = row // 128 * (scales.shape[1] // 4) + block // 4
    at = tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4
    return scales.reshape(-1)[at]


def decoded(values, scales):
    codes = torch.stack([values & 15, values >> 4], -1).flatten(1).long()
    numbers = E2M1.double()[codes & 7] * torch.where(codes >= 8, -1.0, 1.0)
    rows, k = numbers.shape
    return numbers * unswizzled(scales.double(), rows, k // 16).repeat_interleave(16, 1)


def half_a_block(args):
    """K = 136, and scales of as many blocks as have room."""
    args["a"], args["b"] = args["a"].new_zeros(5, 68), args["b"].new_zeros(72, 68)


class Fp4Mm(Operator):
    cases = [
        case(m=5, n=72, k=144, out=BF16),
        case(m=1, n=128, k=2048, out=BF16),
        case(m=130, n=264, k=256, out=F16),
        case(m=129, n=33, k=16, out=F16),
        case(m=17, n=8, k=48, out=BF16),
        case(m=12, n=200, k=4640, out=BF16),
        case(m=300, n=140, k=672, out=BF16),
        case(m=7, n=264, k=2080, out=BF16),
        case(m=30, n=264, k=1056, out=F16),
        case(m=70, n=33, k=1568, out=BF16),
        case(m=2, n=3, k=0, out=BF16),
        case(m=3, n=24, k=32768, out=BF16, data="positive"),
        case(m=20, n=72, k=1024, out=BF16, data="all scales"),
        case(m=5, n=72, k=2048, out=BF16, data="cancelling"),
        case(m=140, n=72, k=2048, out=F16, data="cancelling"),
        case(m=18, n=40, k=1024, out=BF16, data="outliers"),
        case(m=3, n=24, k=256, out=BF16, alpha=1e-23),
    ]
    empty = [case(m=0, n=16, k=32, out=F16), case(m=3, n=0, k=32, out=BF16)]
    rows = {"a": 0, "out": 0}
    strided = ("a", "b", "out")
    misaligned = ("a", "b", "out", "alpha")
    bad = [
        bad_shape("out", (5, 71)),
        bad_alias("out", "b"),
        bad_alias("out", "block_scale_a"),
        bad_shape("a", (5, 64), names="b"),
        bad_shape("a", (5, 71), names="a|b"),
        bad_shape("b", (72, 64)),
        Bad("a", "half a block", half_a_block, names="a|b"),
        bad_shape("block_scale_a", (5, 9)),
        bad_shape("block_scale_b", (256, 12)),
        bad_shape("alpha", (2,)),
    ]
    accepts = {"alpha.rank": "one element of any rank"}

    def make(self, case, draw):
        data, alpha = getattr(case, "data", None), getattr(case, "alpha", 1e-5)

        def scales(rows):
            shape = (rows, case.k // 16)
            if data == "all scales":  # subnormal ones, too, and 0
                return swizzled(draw.integers(0, 0x7F, shape, torch.uint8).view(FP8)).to(draw.device)
            numbers = draw.uniform(shape, low=0.02, high=4.0 if data == "outliers" else 448.0)
            if data == "outliers":
                numbers[:, 3::17] *= 100
            return swizzled(repeated(numbers.t(), data).t().to(FP8)).to(draw.device)

        def values(rows, sign):
            codes = repeated(draw.integers(0, 256, (case.k // 2, rows), torch.uint8), data).t().contiguous()
            if data == "cancelling":
                codes[:, case.k // 4 :] ^= sign
            return codes & 0x77 if data == "positive" else codes

        return {
            "out": draw.empty((case.m, case.n), case.out),
            "a": values(case.m, sign=0x88),  # of both numbers of a byte
            "b": values(case.n, sign=0),
            "block_scale_a": scales(case.m),
            "block_scale_b": scales(case.n),
            "alpha": draw.uniform((1,), low=alpha, high=2 * alpha),
        }

    def reference(self, case, args):
        a, b = decoded(args.a, args.block_scale_a), decoded(args.b, args.block_scale_b)
        alpha = args.alpha.double()
        return {"out": Expected(alpha * (a @ b.t()), alpha * (a.abs() @ b.abs().t()))}

    forms = {
        "functional": lambda sgl_kernel, args: {
            "out": sgl_kernel.cutlass_scaled_fp4_mm(*[*args.values()][1:], args["out"].dtype)
        }
    }

    def python(self, sgl_kernel, args):
        # The Python function has no destination form.
        torch.ops.sgl_kernel.cutlass_scaled_fp4_mm(*args.values())


test_fp4_mm = operator_tests(Fp4Mm(name="cutlass_scaled_fp4_mm"))


@pytest.mark.parametrize("device", DEVICES)
def test_every_value_times_every_scale_is_exact(device):
    import sgl_kernel

    scales = torch.arange(127, dtype=torch.uint8).view(FP8)
    # Row r has scale r, and value v at v; b picks one value for each column.
    a = torch.zeros(127, 16, dtype=torch.uint8) + torch.arange(16, dtype=torch.uint8)
    b = torch.eye(16, dtype=torch.uint8) * 2  # 1.0

    def pack(codes):
        return codes[:, ::2] | codes[:, 1::2] << 4

    one = torch.ones(1)
    ones = swizzled(torch.ones(16, 1).to(FP8))
    inputs = [t.to(device) for t in (pack(a), pack(b), swizzled(scales[:, None]), ones, one)]
    result = sgl_kernel.cutlass_scaled_fp4_mm(*inputs, BF16).cpu()
    expected = scales.float()[:, None] * torch.cat([E2M1, -E2M1])
    assert torch.equal(result.float(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_in_its_row(device):
    import sgl_kernel

    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 256, (rows, 64), generator=draw, dtype=torch.uint8) for rows in (5, 24))
    scales_a, scales_b = torch.ones(5, 8).to(FP8), torch.ones(24, 8).to(FP8)
    scales_a.view(torch.uint8)[1, 3] = 0x7F
    inputs = [t.to(device) for t in (a, b, swizzled(scales_a), swizzled(scales_b), torch.ones(1))]
    result = sgl_kernel.cutlass_scaled_fp4_mm(*inputs, F16).cpu()
    assert result[1].isnan().all()
    assert result[[0, 2, 3, 4]].isfinite().all()
