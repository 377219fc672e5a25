"""The products with QServe's weights, against float64, with a packer that follows the layout's description byte by
byte."""

import pytest
import torch

from tests.harness import Expected, Operator, assert_same_bits, bad_alias, bad_shape, bad_value, case, operator_tests

F16 = torch.float16
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def byte_of_weight(n, k, width):
    """The byte and the shift of weight (n, k) of a matrix of `width` columns: see kernels/gemm/qserve_mm.h."""
    tile = n // 32 * (width // 32) + k // 32
    in_tile = n % 8 * 64 + k % 16 // 4 * 16 + k % 32 // 16 * 8 + n % 16 // 8 * 4 + k % 4
    return tile * 512 + in_tile, n % 32 // 16 * 4


def packed(q):
    """q [N, K], 0 to 15, as [N, K / 2] int8."""
    rows, width = q.shape
    at, shift = byte_of_weight(torch.arange(rows)[:, None], torch.arange(width)[None, :], width)
    result = torch.zeros(rows * width // 2, dtype=torch.int32)
    result.index_add_(0, at.reshape(-1), (q.cpu().int() << shift.int()).reshape(-1))
    return result.to(torch.uint8).view(torch.int8).view(rows, width // 2)


def unpacked(kernel):
    rows, width = kernel.shape[0], kernel.shape[1] * 2
    at, shift = byte_of_weight(torch.arange(rows)[:, None], torch.arange(width)[None, :], width)
    return kernel.reshape(-1).view(torch.uint8)[at].int() >> shift & 15


def place_of_row(rows):
    """Where the scale of each row of weights is."""
    n = torch.arange(rows)
    return n // 32 * 32 + n % 8 * 4 + n % 32 // 8


class QserveMm(Operator):
    empty = [case(m=0, n=32, k=128), case(m=3, n=0, k=128)]
    batch = {"_in_feats": 0, "_ascales": 0, "_out_feats": 0}
    strided = ("_in_feats", "_out_feats")
    misaligned = ("_in_feats", "_out_feats", "_wscales", "_ascales")
    accepts = {f"{name}.rank": "the number of its elements counts" for name in ("_wscales", "_ascales")}

    def tensors(self, case, draw):
        q, scale = draw.integers(0, 16, (case.n, case.k), torch.int32), getattr(case, "scale", 1e-3)
        inputs = draw.integers(-128, 128, (case.m, case.k), torch.int8)
        if getattr(case, "extremes", False):
            inputs.fill_(-128)
            q.fill_(15)
        return {
            "_in_feats": inputs,
            "_kernel": packed(q).to(draw.device),
            "_wscales": draw.uniform((case.n,), F16, low=scale, high=10 * scale),
            "_ascales": draw.uniform((case.m, 1), F16, low=1e-3, high=1e-2),
            "_out_feats": draw.empty((case.m, case.n), F16),
        }

    f32_roundings = 8


class PerChannel(QserveMm):
    batch = {**QserveMm.batch, "_a_ssums": 0}
    misaligned = (*QserveMm.misaligned, "_w_szs", "_a_ssums")
    accepts = {
        **QserveMm.accepts,
        "_w_szs.rank": "the number of its elements counts",
        "_a_ssums.rank": "the number of its elements counts",
    }
    cases = [
        case(m=5, n=96, k=160),
        case(m=1, n=32, k=4096),
        case(m=130, n=160, k=320),
        case(m=17, n=256, k=32),
        case(m=40, n=160, k=4640),
        case(m=300, n=64, k=128),
        case(m=2, n=32, k=0),
        case(m=3, n=32, k=32768),
        case(m=18, n=64, k=32768, extremes=True),
        case(m=6, n=32, k=1024, scale=5e-6),  # subnormal
    ]
    bad = [
        bad_shape("_in_feats", (5, 144), names="_in_feats"),
        bad_shape("_in_feats", (5, 128), names="_kernel"),
        bad_shape("_kernel", (95, 80)),
        bad_shape("_wscales", (95,)),
        bad_shape("_ascales", (6,)),
        bad_shape("_w_szs", (5,)),
        bad_shape("_a_ssums", (96,)),
        bad_shape("_out_feats", (5, 95)),
        bad_alias("_out_feats", "_kernel"),
    ]

    def make(self, case, draw):
        t = self.tensors(case, draw)
        t["_w_szs"] = draw.uniform((case.n,), F16, high=0.1)
        t["_a_ssums"] = draw.normal((case.m,), F16)
        order = ("_in_feats", "_kernel", "_wscales", "_ascales", "_w_szs", "_a_ssums", "_out_feats")
        return {name: t[name] for name in order}

    def reference(self, case, args):
        a, q = args._in_feats.double(), unpacked(args._kernel).double()
        scale = args._ascales.double().reshape(-1, 1) * args._wscales.double()
        zeros = args._a_ssums.double().reshape(-1, 1) * args._w_szs.double()
        value = scale * (a @ q.t())
        return {"_out_feats": Expected(value - zeros, value.abs() + zeros.abs())}

    forms = {
        "functional": lambda sgl_kernel, args: {
            "_out_feats": sgl_kernel.qserve_w4a8_per_chn_gemm(*[*args.values()][:-1])
        }
    }


class PerGroup(QserveMm):
    cases = [
        case(m=5, n=96, k=256),
        case(m=1, n=32, k=4096),
        case(m=130, n=160, k=384),
        case(m=17, n=256, k=128),
        case(m=12, n=160, k=4608),
        case(m=2, n=32, k=0),
        case(m=3, n=32, k=32768),
        case(m=18, n=64, k=32768, extremes=True),
        case(m=6, n=32, k=1024, scale=5e-6),
    ]
    bad = [
        bad_shape("_in_feats", (5, 192), names="_in_feats"),
        bad_shape("_in_feats", (5, 128), names="_kernel"),
        bad_shape("_kernel", (95, 128)),
        bad_shape("_zeros", (1, 96)),
        bad_shape("_scales_i8", (96, 2)),
        bad_shape("_wscales", (95,)),
        bad_shape("_ascales", (6,)),
        bad_shape("_out_feats", (5, 95)),
        bad_alias("_out_feats", "_kernel"),
        bad_value("_zeros", torch.zeros(96, 2, dtype=torch.int8).t(), names="_zeros|_out_feats"),
    ]

    def make(self, case, draw):
        t = self.tensors(case, draw)
        # Any numbers: what leaves int8 wraps around.
        t["_zeros"], t["_scales_i8"] = (draw.integers(-128, 128, (case.k // 128, case.n), torch.int8) for _ in range(2))
        order = ("_in_feats", "_kernel", "_zeros", "_scales_i8", "_wscales", "_ascales", "_out_feats")
        return {name: t[name] for name in order}

    def reference(self, case, args):
        place = place_of_row(case.n)

        def by_weight(groups):  # [N, K]
            return groups[:, place].t().int().repeat_interleave(128, 1)

        weights = unpacked(args._kernel) * by_weight(args._scales_i8) + by_weight(args._zeros)
        weights = weights.to(torch.uint8).view(torch.int8).double()
        scale = args._ascales.double().reshape(-1, 1) * args._wscales.double()
        return {"_out_feats": scale * (args._in_feats.double() @ weights.t())}

    forms = {
        "functional": lambda sgl_kernel, args: {
            "_out_feats": sgl_kernel.qserve_w4a8_per_group_gemm(*[*args.values()][:-1])
        }
    }


test_qserve_mm = operator_tests(
    PerChannel(name="qserve_w4a8_per_chn_gemm"), PerGroup(name="qserve_w4a8_per_group_gemm")
)


def test_the_packer_is_a_bijection_and_matches_the_public_packing_code():
    """QServe packs by views: N in 2 x 2 x 8, K in 2 x 4 x 4, then the bytes in the order (n 8, k 4, k 2, n 2, k 4)."""
    q = torch.randint(0, 16, (64, 96), generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpacked(packed(q)), q.int())
    tiles = q.view(2, 2, 2, 8, 3, 2, 4, 4)  # n tile, n half, n 2, n 8, k tile, k 2, k 4, k 4
    low, high = tiles.unbind(1)
    bytes_ = (low | high << 4).permute(0, 3, 2, 5, 4, 1, 6)
    assert torch.equal(packed(q).view(torch.uint8).reshape(-1), bytes_.reshape(-1).to(torch.uint8))


@pytest.mark.parametrize("device", DEVICES)
def test_quantized_weights_give_what_the_floats_give(device):
    """The whole way: weights quantized by channel and by groups, near enough to the product of the floats."""
    import sgl_kernel

    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(rows, 512, generator=generator) for rows in (9, 64))
    ascales = (x.abs().amax(1, keepdim=True) / 127).half()
    inputs = (x / ascales.float()).round().clamp(-128, 127).to(torch.int8)
    exact = x @ w.t()

    scale = (w.amax(1, keepdim=True) - w.amin(1, keepdim=True)) / 15
    zero = (-w.amin(1, keepdim=True) / scale).round()
    q = ((w / scale).round() + zero).clamp(0, 15)
    arguments = (inputs, packed(q), scale.half(), ascales, (scale * zero).half(), x.sum(1).half())
    result = sgl_kernel.qserve_w4a8_per_chn_gemm(*[t.to(device) for t in arguments]).cpu()
    assert (result.float() - exact).norm() < 0.15 * exact.norm()

    wscales = (w.abs().amax(1, keepdim=True) / 119).half()
    groups = (w / wscales.float()).round().clamp(-119, 119).view(64, 4, 128)
    scale = ((groups.amax(2) - groups.amin(2)) / 15).round().clamp(min=1)
    zero = (-groups.amin(2) / scale).round()
    q = ((groups / scale[..., None]).round() + zero[..., None]).clamp(0, 15).view(64, 512)
    place = place_of_row(64)
    scales, zeros = (torch.empty(4, 64, dtype=torch.int8) for _ in range(2))
    scales[:, place], zeros[:, place] = scale.t().to(torch.int8), (-zero * scale).t().to(torch.int8)
    arguments = [t.to(device) for t in (inputs, packed(q), zeros, scales, wscales, ascales)]
    result = sgl_kernel.qserve_w4a8_per_group_gemm(*arguments)
    assert (result.cpu().float() - exact).norm() < 0.15 * exact.norm()
    assert_same_bits("again", sgl_kernel.qserve_w4a8_per_group_gemm(*arguments), result)
