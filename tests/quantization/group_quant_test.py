"""sgl_per_token_group_quant_8bit and sgl_per_token_group_quant_8bit_v2, bit for bit."""

import pytest
import torch
import torch.nn.functional as F

from tests.harness import Bad, Operator, assert_close, bad_alias, bad_shape, bad_value, case, operator_tests
from tests.quantization.float8 import E4M3, all_float32, assert_bits, to_e4m3, to_int8

F32, F16, BF16, I8 = torch.float32, torch.float16, torch.bfloat16, torch.int8
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
LIMITS = {E4M3: (-448.0, 448.0), I8: (-128.0, 127.0)}
EPS = 1e-10


def empty_scales(empty, rows: tuple, groups: int, layout: str) -> torch.Tensor:
    """As upstream's callers lay them out: "row", "column", "tma" (columns of a multiple of 4 rows), "packed" (likewise,
    UE8M0)."""
    *experts, tokens = rows
    if layout == "row":
        return empty((*rows, groups), F32)
    if layout == "column":
        return empty((*experts, groups, tokens), F32).transpose(-1, -2)
    padded = (tokens + 3) // 4 * 4
    if layout == "tma":
        return empty((*experts, groups, padded), F32).transpose(-1, -2)[..., :tokens, :]
    return empty((*experts, (groups + 3) // 4, padded), torch.int32).transpose(-1, -2)[..., :tokens, :]


def quantized(x: torch.Tensor, dtype, group_size: int, ue8m0: bool, packed: bool, eps=EPS):
    """float32 → (values, scales)."""
    high = LIMITS[dtype][1]
    groups = x.unflatten(-1, (-1, group_size))
    amax = torch.maximum(groups.abs().amax(-1), torch.tensor(eps, dtype=F32))  # both keep a NaN
    scale, inverse = amax / high, torch.full_like(amax, high) / amax  # high / amax would multiply by 1 / amax
    exponent = torch.zeros_like(scale, dtype=torch.uint8)
    if ue8m0:
        mantissa, power = torch.frexp(scale)  # scale = mantissa · 2^power, mantissa in [0.5, 1)
        power = torch.where(mantissa == 0.5, power - 1, power)
        exponent = torch.where(scale.isfinite(), power + 127, 255).to(torch.uint8)
        nan = torch.tensor(torch.nan)
        scale, inverse = (
            torch.where(scale.isfinite(), torch.ldexp(torch.ones_like(amax), p), nan) for p in (power, -power)
        )
    cast = to_e4m3 if dtype == E4M3 else to_int8
    values = cast((groups * inverse[..., None]).flatten(-2))
    if packed:
        exponent = F.pad(exponent, (0, -exponent.shape[-1] % 4))
        scale = exponent.contiguous().view(torch.int32)
    return values, scale


def groups_of(size) -> Bad:
    """A group size that no kernel has, with scales of its shape."""

    def mutate(args):
        args["group_size"] = size
        args["output_s"] = args["output_s"].new_zeros(3, 1152 // size)

    return Bad("group_size", f"groups of {size}", mutate)


class GroupQuant(Operator):
    bad = [
        bad_shape("output_q", (3, 1024)),
        bad_shape("output_s", (3, 8)),
        bad_value("group_size", 100),
        bad_value("group_size", 0),
        groups_of(96),  # a divisor of the row's length
        groups_of(8),
        groups_of(384),
        bad_value("eps", 0.0),
        bad_value("eps", float("nan")),
        bad_value("fp8_min", -127.0),
        bad_value("fp8_max", 240.0),
        bad_alias("output_q", "input"),
        bad_alias("output_s", "output_q"),
    ]
    empty = [
        case(dtype=BF16, to=E4M3, rows=(0,), size=256, group=128, layout="row"),
        case(dtype=BF16, to=E4M3, rows=(3,), size=0, group=128, layout="column"),
    ]
    strided = ("input", "output_q")

    def python(self, sgl_kernel, args):
        return sgl_kernel.sgl_per_token_group_quant_8bit(*args.values())

    def make(self, case, draw):
        fused = getattr(case, "fuse", False)
        low, high = LIMITS[case.to]
        input = draw.normal((*case.rows, (1 + fused) * case.size), case.dtype, std=getattr(case, "std", 1.0))
        if getattr(case, "outliers", False):  # channels, as those of language models
            input[..., 5::61] *= 1000
        return {
            "input": input,
            "output_q": draw.empty((*case.rows, case.size), case.to),
            "output_s": empty_scales(draw.empty, case.rows, case.size // case.group, case.layout),
            "group_size": case.group,
            "eps": EPS,
            "fp8_min": low,
            "fp8_max": high,
            "scale_ue8m0": getattr(case, "ue8m0", False) or case.layout == "packed",
        }

    def compare(self, case, args, outputs):
        expected = quantized(args.input.float(), case.to, case.group, args.scale_ue8m0, case.layout == "packed")
        for name, value in zip(("output_q", "output_s"), expected, strict=True):
            assert_bits(name, outputs[name], value)


class GroupQuantV2(GroupQuant):
    inout = ("output_q", "output_s")  # masked tokens keep what was there
    rows = {"input": -2, "output_q": -2, "output_s": -2}
    accepts = {"masked_m.given": "three dimensions make the batch of experts"}

    def make(self, case, draw):
        made = super().make(case, draw)
        made["fuse_silu_and_mul"] = getattr(case, "fuse", False)
        masked = getattr(case, "masked_m", None)
        for name in self.inout:
            made[name].view(torch.uint8 if made[name].element_size() == 1 else torch.int32).fill_(1)
        made["masked_m"] = None if masked is None else draw.tensor(list(masked), torch.int32)
        return made

    def python(self, sgl_kernel, args):
        return sgl_kernel.sgl_per_token_group_quant_8bit(*args.values(), enable_v2=True)

    def compare(self, case, args, outputs):
        x = args.input
        if args.fuse_silu_and_mul:
            gate, up = x.chunk(2, dim=-1)
            # What silu_and_mul() writes, up to the rare value that rounds the other way.
            x = (F.silu(gate) * up).to(case.dtype)
        values, scales = quantized(x.float(), case.to, case.group, args.scale_ue8m0, case.layout == "packed")
        for expert in range(len(args.masked_m) if args.masked_m is not None else 0):
            rows = slice(max(int(args.masked_m[expert]), 0), None)
            values[expert, rows] = args.output_q[expert, rows].to(values.dtype)
            scales[expert, rows] = args.output_s[expert, rows].to(scales.dtype)
        if not args.fuse_silu_and_mul:
            assert_bits("output_q", outputs["output_q"], values)
            assert_bits("output_s", outputs["output_s"], scales)
            return
        if case.layout == "packed":
            assert_bits("output_s", outputs["output_s"], scales)
        else:
            assert_close("output_s", outputs["output_s"], scales.double(), f32_roundings=2**17)  # 2^-7: bfloat16's step
        actual, expected = outputs["output_q"].cpu().double(), values.double()
        differing = actual != expected
        assert differing.double().mean() <= 0.01, f"output_q: {int(differing.sum())} of {actual.numel()} differ"
        step = torch.clamp(expected.abs() / 8, min=2.0**-9) if case.to == E4M3 else 1.0
        assert ((actual - expected).abs() <= step).all()


test_group_quant = operator_tests(
    GroupQuant(
        name="sgl_per_token_group_quant_8bit",
        cases=[
            case(dtype=BF16, to=E4M3, rows=(3,), size=1152, group=128, layout="row"),
            case(dtype=BF16, to=E4M3, rows=(130,), size=7168, group=128, layout="tma"),
            case(dtype=F16, to=E4M3, rows=(5,), size=512, group=64, layout="column"),
            case(dtype=F32, to=E4M3, rows=(17,), size=96, group=32, layout="row", std=1e-20),
            case(dtype=BF16, to=I8, rows=(9,), size=48, group=16, layout="row", std=100.0),
            case(dtype=F16, to=I8, rows=(64,), size=4096, group=128, layout="tma"),
            case(dtype=F32, to=I8, rows=(3,), size=128, group=128, layout="row"),
            case(dtype=F32, to=E4M3, rows=(3,), size=256, group=64, layout="row", std=1e-40),  # subnormal
            case(dtype=F16, to=I8, rows=(3,), size=256, group=32, layout="row", std=1e-6),
            case(dtype=BF16, to=E4M3, rows=(3,), size=32768, group=128, layout="packed", std=1e-23),
            case(dtype=BF16, to=E4M3, rows=(13,), size=896, group=128, layout="packed"),
            case(dtype=F32, to=E4M3, rows=(6,), size=64, group=16, layout="packed", std=1e30),
            case(dtype=BF16, to=I8, rows=(6,), size=256, group=32, layout="row", ue8m0=True),
            case(dtype=BF16, to=E4M3, rows=(2, 9), size=256, group=64, layout="column"),
            case(dtype=F16, to=I8, rows=(4,), size=2048, group=32, layout="row", outliers=True),
            case(dtype=BF16, to=E4M3, rows=(4,), size=2048, group=128, layout="packed", outliers=True),
            case(dtype=BF16, to=E4M3, rows=(2050,), size=4096, group=128, layout="row"),
            case(dtype=BF16, to=E4M3, rows=(2050,), size=4096, group=128, layout="column"),
            case(dtype=BF16, to=E4M3, rows=(2**18 + 1,), size=8192, group=128, layout="row", large=True),
        ],
        batch={"input": 0, "output_q": 0, "output_s": 0},
    ),
    GroupQuantV2(
        name="sgl_per_token_group_quant_8bit_v2",
        cases=[
            case(dtype=BF16, to=E4M3, rows=(3,), size=1152, group=128, layout="row"),
            case(dtype=BF16, to=E4M3, rows=(33,), size=2048, group=128, layout="packed", fuse=True),
            case(dtype=F16, to=I8, rows=(33,), size=512, group=64, layout="column", fuse=True),
            case(
                dtype=BF16, to=E4M3, rows=(3, 70), size=2048, group=128, layout="packed", fuse=True, masked_m=(70, 0, 9)
            ),
            case(dtype=BF16, to=E4M3, rows=(3, 5), size=256, group=64, layout="tma", masked_m=(-1, 5, -(2**31))),
            case(dtype=F32, to=E4M3, rows=(2, 5), size=96, group=32, layout="tma", fuse=True, masked_m=(2, 5)),
            case(dtype=BF16, to=E4M3, rows=(2, 5), size=256, group=128, layout="row", masked_m=(4, 9)),
            case(dtype=F16, to=I8, rows=(2, 5), size=256, group=16, layout="row", masked_m=(0, 1)),
        ],
    ),
    # Experts, masked and fused, as the typical case, with scales in words.
    GroupQuantV2(
        name="sgl_per_token_group_quant_8bit_v2",
        cases=[
            case(dtype=BF16, to=E4M3, rows=(2, 7), size=1152, group=128, layout="packed", fuse=True, masked_m=(3, 7))
        ],
        empty=[case(dtype=BF16, to=E4M3, rows=(0, 7), size=128, group=128, layout="tma", masked_m=())],
        bad=[
            bad_shape("input", (2, 7, 1152)),
            bad_shape("input", (2, 7, 2305)),
            bad_shape("output_q", (2, 7, 2304)),
            bad_shape("output_s", (2, 7, 9)),
            bad_shape("masked_m", (3,)),
            bad_shape("masked_m", (2, 1)),
            bad_value("masked_m", torch.zeros(2, dtype=torch.int64)),
            bad_value("scale_ue8m0", False, names="output_s"),
        ],
    ),
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("to", [E4M3, I8])
def test_every_rounding(device, to):
    """In groups whose largest value is that of the dtype, so that they are divided by 1: all bfloat16 values up to it,
    their float32 neighbours and the ties between e4m3 values."""
    import sgl_kernel

    high = LIMITS[to][1]
    finite = torch.arange(0x7F, dtype=torch.uint8).view(E4M3).float()
    ties = (finite[1:] + finite[:-1]) / 2
    values = all_float32(around=[*ties, *-ties])
    values = values[values.abs() <= high]
    x = F.pad(values, (0, -len(values) % 15)).view(-1, 15)
    x = F.pad(x, (1, 0), value=high)
    q, s = torch.empty(x.shape, dtype=to, device=device), torch.empty(len(x), 1, device=device)
    sgl_kernel.sgl_per_token_group_quant_8bit(x.to(device), q, s, 16, EPS, *LIMITS[to])
    assert_bits("output_q", q, (to_e4m3 if to == E4M3 else to_int8)(x))
    assert (s == 1).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("to", [E4M3, I8])
@pytest.mark.parametrize("layout", ["row", "packed"])
def test_zeros_and_not_finite(device, to, layout):
    import sgl_kernel

    x = torch.randn(5, 256, dtype=BF16)
    x[0] = 0.0
    x[1, 3] = float("nan")
    x[2, 200] = float("-inf")
    x[3] = 2.0**-120
    packed = layout == "packed"
    q = torch.empty(x.shape, dtype=to, device=device)
    with torch.device(device):
        s = empty_scales(lambda shape, dtype: torch.empty(shape, dtype=dtype), (5,), 2, layout)
    sgl_kernel.sgl_per_token_group_quant_8bit(x.to(device), q, s, 128, EPS, *LIMITS[to], packed)
    values, scales = quantized(x.float(), to, 128, packed, packed)
    assert_bits("output_q", q, values)
    assert_bits("output_s", s, scales)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("to", [E4M3, I8])
def test_ue8m0_is_exact_at_powers_of_two(device, to):
    """amax = fp8_max · 2^k has the scale 2^k, its neighbour above 2^(k+1); and the values fit what was rounded."""
    import sgl_kernel

    high = LIMITS[to][1]
    x = torch.zeros(120, 16)
    x[:, 0] = high * torch.ldexp(torch.ones(120), torch.arange(-60, 60))
    x[1::2, 0] = torch.nextafter(x[1::2, 0], torch.tensor(torch.inf))
    q, s = torch.empty(x.shape, dtype=to, device=device), torch.empty(120, 1, device=device)
    sgl_kernel.sgl_per_token_group_quant_8bit(x.to(device), q, s, 16, 1e-30, *LIMITS[to], True)
    powers = torch.ldexp(torch.ones(120), torch.arange(-60, 60))
    powers[1::2] *= 2
    assert torch.equal(s.cpu()[:, 0], powers)
    error = (q.cpu().double() * s.cpu().double() - x.double()).abs()
    assert (error <= torch.maximum(x.abs() / 16, s.cpu())).all()


@pytest.mark.parametrize("device", DEVICES)
def test_fused_is_silu_and_mul_then_quantized(device):
    """The values that are quantized are those that the activation writes."""
    import sgl_kernel

    pytest.importorskip("sgl_kernel._elementwise")
    x = torch.randn(64, 4096, dtype=BF16, device=device)
    q, s = torch.empty(64, 2048, dtype=E4M3, device=device), torch.empty(64, 16, device=device)
    sgl_kernel.sgl_per_token_group_quant_8bit(x, q, s, 128, EPS, -448.0, 448.0, False, True)
    expected_q, expected_s = torch.empty_like(q), torch.empty_like(s)
    y = sgl_kernel.silu_and_mul(x)
    sgl_kernel.sgl_per_token_group_quant_8bit(y, expected_q, expected_s, 128, EPS, -448.0, 448.0)
    same = (q.view(torch.uint8) == expected_q.view(torch.uint8)).double().mean()
    assert same == 1 if device == "cuda" else same > 0.999  # the CPU's two exp differ in the last place
