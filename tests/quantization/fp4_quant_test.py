"""scaled_fp4_quant and its forms for experts, bit for bit."""

import pytest
import torch
import torch.nn.functional as F

from tests.harness import Bad, Operator, assert_same_bits, bad_alias, bad_index, bad_shape, case, operator_tests
from tests.quantization.float8 import E4M3, to_e4m3

F32, F16, BF16, I32 = torch.float32, torch.float16, torch.bfloat16, torch.int32
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
TIES = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])  # between each and the next
TIE_GOES_UP = torch.tensor([False, True, False, True, False, True, False])  # to the even code


def to_e2m1(values: torch.Tensor) -> torch.Tensor:
    """float32, not negative → codes 0 … 7; NaN is 0."""
    magnitude = values.nan_to_num(0.0, float("inf"))
    code = torch.bucketize(magnitude, TIES)  # how many ties lie below
    tie = code.clamp(max=len(TIES) - 1)
    code += (magnitude == TIES[tie]) & TIE_GOES_UP[tie]
    return code.to(torch.uint8)


def quantized(x: torch.Tensor, global_scale: torch.Tensor):
    """float32 [M, K] → (bytes [M, K / 2], scales e4m3 [M, K / 16])."""
    blocks = x.unflatten(1, (-1, 16))
    amax = blocks.abs().amax(-1)
    scale = to_e4m3(global_scale * (amax * torch.tensor(1 / 6, dtype=F32)))
    wide = scale.float()
    inverse = torch.where(wide == 0, 0.0, 1.0 / (wide * (1.0 / global_scale)))
    codes = to_e2m1((blocks.abs() * inverse[..., None]).flatten(1)) + 8 * x.signbit().to(torch.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4, scale


def scale_tiles(scales: torch.Tensor) -> torch.Tensor:
    """e4m3 [M, blocks] → bytes [ceil(M / 128) · 128, ceil(blocks / 4) · 4] in the order of tensor cores."""
    rows, blocks = scales.shape
    padded = F.pad(scales.view(torch.uint8), (0, -blocks % 4, 0, -rows % 128))
    tiles = padded.view(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(padded.shape)


def words(tiles: torch.Tensor) -> torch.Tensor:
    return tiles.contiguous().view(I32)


def half_a_block(args):
    """K = 4104, all shapes agreeing."""
    args["input"] = args["input"].new_zeros(3, 4104)
    args["output"], args["output_scale"] = args["output"].new_zeros(3, 2052), args["output_scale"].new_zeros(128, 65)


class Fp4Quant(Operator):
    name = "scaled_fp4_quant"
    cases = [
        case(dtype=BF16, rows=3, k=4096, scale=600.0),
        case(dtype=F16, rows=128, k=64, scale=600.0),
        case(dtype=BF16, rows=150, k=80, scale=1.0),
        case(dtype=F16, rows=257, k=16, scale=1e-3),
        case(dtype=BF16, rows=1, k=7168, scale=1e5),
        case(dtype=BF16, rows=3, k=32768, scale=1e25, std=1e-23),
        case(dtype=F16, rows=3, k=64, scale=1e8, std=1e-6),  # subnormal
        case(dtype=BF16, rows=2050, k=4096, scale=600.0),
    ]
    empty = [case(dtype=BF16, rows=0, k=64, scale=1.0)]
    inout = ("input", "input_scale")  # upstream's schema marks them as written
    rows = {"input": 0, "output": 0}
    strided = ("input", "output")
    accepts = {"input_scale.rank": "one element in any rank"}
    bad = [
        bad_shape("output", (3, 2047)),
        bad_shape("output_scale", (127, 64)),
        bad_shape("output_scale", (128, 63)),
        bad_shape("input_scale", (2,)),
        bad_alias("output", "input"),
        bad_alias("input", "output_scale", names="output_scale"),
        Bad("input", "K of half a block", half_a_block, names="input"),
    ]
    forms = {
        "functional": lambda kernels, a: dict(
            zip(
                ("output", "output_scale"),
                (
                    t if t.dtype == torch.uint8 else t.view(I32)
                    for t in kernels.scaled_fp4_quant(a.input, a.input_scale)
                ),
                strict=True,
            )
        )
    }

    def make(self, case, draw):
        padded = (case.rows + 127) // 128 * 128
        return {
            "output": draw.empty((case.rows, case.k // 2), torch.uint8),
            "input": draw.normal((case.rows, case.k), case.dtype, std=getattr(case, "std", 1.0)),
            "output_scale": draw.empty((padded, (case.k + 63) // 64), I32),
            "input_scale": draw.tensor([case.scale], F32),
        }

    def reference(self, case, args):
        x, global_scale = args.input.float(), args.input_scale.float()
        values, scales = quantized(x, global_scale)
        return {
            "output": values,
            "input": x.to(case.dtype),
            "output_scale": words(scale_tiles(scales)),
            "input_scale": global_scale,
        }

    def compare(self, case, args, outputs):
        expected = self.reference(case, args)
        for name in outputs:
            assert_same_bits(name, outputs[name], expected[name])


class ExpertsQuant(Operator):
    """Rows of no expert, masked rows and scales of no row keep what was there."""

    inout = ("output", "output_scale")
    rows = {"input": 0, "output": 0}
    strided = ("input", "output")
    bad = [
        bad_shape("output", (9, 127)),
        bad_shape("output_scale", (384, 3)),
        bad_shape("input_global_scale", (5,), names="input_offset_by_experts|mask"),
    ]

    def make(self, case, draw):
        """The operator's arguments but for those that say which rows are an expert's."""
        rows, scale_rows = self.extents(case)
        fused = getattr(case, "fuse", False)
        return {
            "output": draw.tensor(torch.full((rows, case.k // 2), 0x55), torch.uint8),
            "output_scale": draw.tensor(torch.full((scale_rows, (case.k + 63) // 64), 7), I32),
            "input": draw.normal((rows, case.k * (1 + fused)), case.dtype),
            "input_global_scale": draw.uniform((self.experts(case),), F32, low=100.0, high=600.0),
        }

    def expected(self, case, args, x):
        output, scales = args.output.clone(), args.output_scale.clone().view(torch.uint8)
        for expert, (first, rows, first_scale) in enumerate(self.parts(case)):
            if rows == 0:
                continue
            values, of_rows = quantized(x[first : first + rows].float(), args.input_global_scale[expert].float())
            output[first : first + rows] = values
            ones = torch.ones(rows, -(-case.k // 64) * 4, dtype=torch.uint8)
            written, fresh = scale_tiles(ones.view(E4M3)), scale_tiles(of_rows)
            tiles = slice(first_scale, first_scale + len(written))
            scales[tiles] = torch.where(written.bool(), fresh, scales[tiles])
        return {"output": output, "output_scale": scales.view(I32)}

    def compare(self, case, args, outputs):
        if not getattr(case, "fuse", False):
            for name, expected in self.expected(case, args, args.input).items():
                assert_same_bits(name, outputs[name], expected)
            return
        gate, up = args.input.chunk(2, dim=-1)
        # The activation may round the other way now and then.
        for name, expected in self.expected(case, args, (F.silu(gate) * up).to(case.dtype)).items():
            actual = outputs[name].cpu().contiguous().view(torch.uint8)
            differing = (actual != expected.contiguous().view(torch.uint8)).double().mean()
            assert differing <= 0.01, f"{name}: {float(differing):.1%} of the bytes differ"


class ByOffsets(ExpertsQuant):
    name = "scaled_fp4_experts_quant"
    cases = [
        case(dtype=BF16, counts=(3, 0, 4), k=256),
        case(dtype=F16, counts=(130, 1, 0, 0, 257), k=80),
        case(dtype=BF16, counts=(0, 801, 1251, 0), k=4096),
    ]
    bad = [
        *ExpertsQuant.bad,
        bad_shape("input_offset_by_experts", (3,)),
        bad_shape("output_scale_offset_by_experts", (6,)),
        bad_index("input_offset_by_experts", -1),
        bad_index("input_offset_by_experts", 8),
        bad_index("output_scale_offset_by_experts", -128),
        bad_index("output_scale_offset_by_experts", 256),
        bad_index("output_scale_offset_by_experts", 64),  # within a tile
        bad_index("output_scale_offset_by_experts", 128),  # where another expert's are
    ]

    def experts(self, case):
        return len(case.counts)

    def parts(self, case):
        first = first_scale = 0
        for count in case.counts:
            yield first, count, first_scale
            first, first_scale = first + count, first_scale + -(-count // 128) * 128

    def extents(self, case):
        return sum(case.counts) + 2, sum(-(-count // 128) * 128 for count in case.counts)  # two rows are no expert's

    def make(self, case, draw):
        firsts, _, first_scales = zip(*self.parts(case), strict=True)
        made = super().make(case, draw)
        made["input_offset_by_experts"] = draw.tensor([*firsts, sum(case.counts)], I32)
        made["output_scale_offset_by_experts"] = draw.tensor([*first_scales, self.extents(case)[1]], I32)
        return made


class Masked(ExpertsQuant):
    name = "silu_and_mul_scaled_fp4_experts_quant"
    cases = [
        case(dtype=BF16, rows=3, k=256, mask=(2, 0, 3)),
        case(dtype=BF16, rows=140, k=80, mask=(0, 129, 140), fuse=True),
        case(dtype=F16, rows=1370, k=2048, mask=(513, 3, 1400), fuse=True),
        case(dtype=BF16, rows=128, k=64, mask=(128,), fuse=False),
        case(dtype=BF16, rows=3, k=64, mask=(-1, 3, -(2**31))),
    ]
    bad = [*ExpertsQuant.bad, bad_shape("mask", (2,)), bad_shape("output_scale", (256, 4))]

    def experts(self, case):
        return len(case.mask)

    def parts(self, case):
        for expert, count in enumerate(case.mask):
            yield expert * case.rows, min(max(count, 0), case.rows), expert * (-(-case.rows // 128) * 128)

    def extents(self, case):
        return len(case.mask) * case.rows, len(case.mask) * (-(-case.rows // 128) * 128)

    def make(self, case, draw):
        made = super().make(case, draw)
        return made | {"mask": draw.tensor(case.mask, I32), "use_silu_and_mul": getattr(case, "fuse", False)}

    def python(self, sgl_kernel, args):
        return torch.ops.sgl_kernel.silu_and_mul_scaled_fp4_experts_quant(*args.values())


test_fp4_quant = operator_tests(Fp4Quant(), ByOffsets(), Masked())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_every_rounding(device, dtype):
    """All values up to 6 and a little beyond, in blocks whose largest value is 6, so that they are divided by 1."""
    import sgl_kernel

    bits = torch.arange(0, 2**15, dtype=torch.int16)
    values = bits.view(dtype)
    values = values[values.float() <= 6]
    values = F.pad(values, (0, -len(values) % 14)).view(-1, 14)
    edge = torch.tensor([6.0, -6.0], dtype=dtype).expand(len(values), 2)
    for x in (torch.cat([edge, values], 1), torch.cat([edge, -values], 1)):
        output, scales = sgl_kernel.scaled_fp4_quant(x.to(device), torch.ones((), device=device))
        expected, expected_scales = quantized(x.float(), torch.ones(()))
        assert (expected_scales.float() == 1).all()
        assert_same_bits("output", output, expected)
        assert_same_bits("output_scale", scales.view(torch.uint8), scale_tiles(expected_scales))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_zeros_and_not_finite(device, dtype):
    import sgl_kernel

    x = torch.randn(5, 64, dtype=dtype)
    x[0] = 0.0
    x[1, 3] = float("nan")
    x[2, 20] = float("-inf")
    x[3, :16] *= 1e-6
    output, scales = sgl_kernel.scaled_fp4_quant(x.to(device), torch.tensor([600.0], device=device))
    expected, expected_scales = quantized(x.float(), torch.tensor([600.0]))
    assert_same_bits("output", output, expected)
    assert_same_bits("output_scale", scales.view(torch.uint8), scale_tiles(expected_scales))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("given", [0.0, 1e-40, 1e-30, 3e38, float("inf"), float("nan")])
def test_any_global_scale(device, given):
    import sgl_kernel

    x = torch.randn(5, 64, dtype=BF16)
    x[0] = 0.0
    x[1, 3] = float("nan")
    x[2, 20] = float("-inf")
    output, scales = sgl_kernel.scaled_fp4_quant(x.to(device), torch.tensor([given], device=device))
    expected, expected_scales = quantized(x.float(), torch.tensor([given]))
    assert_same_bits("output_scale", scales.view(torch.uint8), scale_tiles(expected_scales))
    assert_same_bits("output", output, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_grouped(device):
    """The views that a grouped product takes hold what scaled_fp4_quant gives for each group."""
    import sgl_kernel

    groups, rows, k = 2, 150, 96
    x = torch.randn(groups, rows, k, dtype=BF16, device=device)
    global_scale = torch.tensor([300.0, 500.0], device=device)
    mask = torch.tensor([150, 7], dtype=I32, device=device)
    values, scales = sgl_kernel.scaled_fp4_grouped_quant(x, global_scale, mask)
    assert values.shape == (rows, k // 2, groups) and scales.shape == (32, 4, 2, 4, 2, groups)
    for group, count in enumerate(mask.tolist()):
        expected, expected_scales = sgl_kernel.scaled_fp4_quant(x[group, :count], global_scale[group])
        assert torch.equal(values[:count, :, group], expected)
        # (m, k) of the scales is (m % 32, m // 32 % 4, m // 128, k % 4, k // 4).
        linear = scales[..., group].permute(2, 1, 0, 4, 3).reshape(256, 8).view(torch.uint8)[:count]
        tiles = expected_scales.view(torch.uint8).view(-1, 2, 32, 4, 4).permute(0, 3, 2, 1, 4).reshape(-1, 8)
        assert torch.equal(linear[:, :6], tiles[:count, :6])
    for name in ("scaled_fp4_grouped_quant", "silu_and_mul_scaled_fp4_grouped_quant"):
        quantize = getattr(sgl_kernel, name)
        with pytest.raises(ValueError, match=rf"^{name}: input_global_scale has shape \[1\], expected \[2\]"):
            quantize(x, global_scale[:1], mask)
        with pytest.raises(ValueError, match=rf"^{name}: mask has shape \[1\], expected \[2\]"):
            quantize(x, global_scale, mask[:1])
        with pytest.raises(ValueError, match=rf"^{name}: input_tensor has 2 dimensions, expected 3"):
            quantize(x[0], global_scale, mask)
    fused, fused_scales = sgl_kernel.silu_and_mul_scaled_fp4_grouped_quant(x, global_scale, mask)
    assert fused.shape == (rows, k // 4, groups) and fused_scales.shape == (32, 4, 2, 4, 1, groups)


@pytest.mark.parametrize("device", DEVICES)
def test_experts_from_a_map(device):
    import sgl_kernel

    x = torch.randn(5, 64, dtype=BF16, device=device)
    map = torch.tensor([0, 2, 4, 1, 1, 3, 0, 2, 3, 4], device=device)
    offsets = torch.tensor([0, 3, 10], dtype=I32, device=device)
    scale_offsets = torch.tensor([0, 128, 256], dtype=I32, device=device)
    global_scale = torch.tensor([300.0, 500.0], device=device)
    values, scales = sgl_kernel.scaled_fp4_experts_quant(x, global_scale, offsets, scale_offsets, 2, map)
    for expert, (first, last) in enumerate(((0, 3), (3, 10))):
        expected, expected_scales = sgl_kernel.scaled_fp4_quant(x[map[first:last]], global_scale[expert])
        assert torch.equal(values[first:last], expected)
        ours = scales.view(torch.uint8)[128 * expert : 128 * (expert + 1)].reshape(32, 4, 4)
        theirs = expected_scales.view(torch.uint8).reshape(32, 4, 4)
        assert torch.equal(ours[: last - first, 0], theirs[: last - first, 0])
    with pytest.raises(ValueError, match="scaled_fp4_experts_quant: expert_map"):
        sgl_kernel.scaled_fp4_experts_quant(x, global_scale, offsets, scale_offsets, 3, map)
    with pytest.raises(ValueError, match="scaled_fp4_experts_quant: input_tensor has 1 dimensions"):
        sgl_kernel.scaled_fp4_experts_quant(x[0], global_scale, offsets, scale_offsets, 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(2, 3, 64), (64,), (0, 3, 64), (2, 3, 0)])
def test_any_number_of_dimensions(shape, device):
    import sgl_kernel

    x, scale = torch.randn(shape, dtype=BF16, device=device), torch.ones(1, device=device)
    expected, expected_scales = sgl_kernel.scaled_fp4_quant(x.view(torch.Size(shape[:-1]).numel(), shape[-1]), scale)
    values, scales = sgl_kernel.scaled_fp4_quant(x, scale)
    assert_same_bits("values", values, expected)
    assert_same_bits("scales", scales.view(torch.uint8), expected_scales.view(torch.uint8))


def test_offsets_out_of_range():
    """On the CPU they are refused."""
    import sgl_kernel

    x, scale = torch.randn(4, 64, dtype=BF16), torch.ones(1)
    for offsets, scale_offsets, name in (
        ([0, 5], [0, 128], "input_offset_by_experts"),
        ([0, 4], [1, 128], "output_scale"),
    ):
        with pytest.raises(ValueError, match=f"scaled_fp4_experts_quant: {name}"):
            sgl_kernel.scaled_fp4_experts_quant(
                torch.empty(4, 32, dtype=torch.uint8),
                torch.empty(128, 1, dtype=I32),
                x,
                scale,
                torch.tensor(offsets, dtype=I32),
                torch.tensor(scale_offsets, dtype=I32),
            )
