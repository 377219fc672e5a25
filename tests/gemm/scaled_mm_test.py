"""fp8_scaled_mm, fp8_blockwise_scaled_mm and int8_scaled_mm, against products in float64."""

import pytest
import torch

from tests.gemm.fp8_sums import STRETCH, fp8_error
from tests.gemm.hard_data import activations, weights
from tests.harness import (
    Draw,
    Expected,
    Operator,
    assert_close,
    assert_same_bits,
    bad_shape,
    bad_value,
    case,
    operator_tests,
)

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
FP8 = torch.float8_e4m3fn
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


SHAPES = [
    # One row, few rows (by 16, 32, 64), some more; sizes beside those of tiles; K of one block, of less, of many.
    (5, 136, 272),
    (1, 8, 16),
    (16, 264, 512),
    (17, 128, 1040),
    (33, 200, 384),
    (65, 72, 144),
    (128, 64, 4608),
    (130, 304, 640),
    (300, 520, 128),
    (3, 2048, 96),
    # Rows that the copy engine does not take.
    (7, 33, 65),
    (20, 100, 50),
    (140, 130, 257),
    (1, 1, 1),
]


# M, N, K, what a and b are like (see hard_data.py), and how large all scales are.
HARD = [
    (3, 40, 32768, None, 1.0),
    (3, 24, 32768, "positive", 1.0),
    (150, 200, 8320, "positive", 1.0),
    (18, 24, 4096, "positive", 1.0),
    # Blockwise as many rows as the kernel for few takes at most, with K as long as it takes then, and longer.
    (100, 24, 16384, "positive", 1.0),
    (100, 24, 16512, "positive", 1.0),
    (40, 24, 16384, "positive", 1.0),
    (19, 72, 1024, "outliers", 1.0),
    (130, 136, 640, "outliers", 1.0),
    (4, 16, 2048, "cancelling", 1.0),
    (5, 40, 384, "subnormal", 1.0),
    (6, 24, 512, None, 1e-23),
    (70, 136, 256, None, 1e-23),
]
HARD_CASES = [case(m=m, n=n, k=k, out=BF16, data=data, scale=scale) for m, n, k, data, scale in HARD]


def quantized(numbers, dtype, data=None):
    """Of a normal distribution: numbers that use the range of dtype, or with "subnormal" those at its lower end."""
    if dtype == torch.int8:
        return (numbers * 60).round().clamp(-128, 127).to(torch.int8)
    return (numbers * {"subnormal": 2.0**-7, "outliers": 4.0}.get(data, 40.0)).clamp(-448, 448).to(FP8)


class Product(Operator):
    """What the three operators share."""

    rows = {"mat_a": 0, "scales_a": 0, "result": 0}

    def matrices(self, case, draw, dtype):
        data = getattr(case, "data", None)
        return {
            "mat_a": quantized(activations(draw, (case.m, case.k), data), dtype, data),
            "mat_b": quantized(weights(draw, (case.n, case.k), data), dtype, data).t(),
        }

    def compare(self, case, args, outputs):
        result = outputs["result"]
        value, error = self.value_and_error(case, args, result.is_cuda)
        assert_close("result", result, Expected(value, error * 2**24), 1, 1)

    def fp8_error(self, a, b, on_cuda, **stretch):
        # The CPU adds 128 / 8 products and 8 lanes, and then K / 128 sums; with AMX no more (scaled_mm_amx_cpu.cc).
        return fp8_error(a, b, **stretch) if on_cuda else (24 + a.shape[1] / 128) * 2.0**-24 * (a.abs() @ b.abs())


class ScaledMm(Product):
    dtype = FP8
    cases = [case(m=m, n=n, k=k, out=F16 if i % 3 else BF16) for i, (m, n, k) in enumerate(SHAPES)]
    cases += [
        case(m=9, n=40, k=256, out=BF16, a=1, b=1, bias=True),
        case(m=150, n=40, k=256, out=F16, a=1, bias=True),
        case(m=70, n=96, k=256, out=BF16, b=1, bias=True),
    ]
    cases += HARD_CASES
    empty = [case(m=0, n=16, k=32, out=F16), case(m=3, n=0, k=32, out=BF16)]
    strided = ("mat_a",)
    misaligned = ("mat_a", "mat_b", "scales_a", "scales_b", "bias")
    bad = [
        bad_shape("mat_a", (5, 271), names="mat_b"),
        bad_shape("mat_b", (272, 136)),
        bad_shape("scales_a", (4,)),
        bad_shape("scales_b", (137,)),
        bad_value("out_dtype", F32, names="output"),
        bad_value("out_dtype", torch.int8, names="output"),
        bad_value("bias", torch.zeros(135, dtype=BF16)),
        bad_value("bias", torch.zeros(136, dtype=F16)),
    ]
    accepts = {
        "scales_a.rank": "the number of its elements counts",
        "scales_b.rank": "the number of its elements counts",
    }

    def make(self, case, draw):
        scale = getattr(case, "scale", 1.0)
        return {
            **self.matrices(case, draw, self.dtype),
            "scales_a": draw.uniform((getattr(case, "a", case.m), 1), low=1e-4 * scale, high=1e-3 * scale),
            "scales_b": draw.uniform((getattr(case, "b", case.n),), low=1e-4, high=1e-3),
            "out_dtype": case.out,
            "bias": draw.normal((case.n,), case.out) if getattr(case, "bias", False) else None,
        }

    def value_and_error(self, case, args, on_cuda):
        a, b = args.mat_a.double(), args.mat_b.double()
        scale = args.scales_a.double().reshape(-1, 1) * args.scales_b.double().reshape(1, -1)
        value = scale * (a @ b)
        # Of int8 the scales' two products and the rounding of the sum to float32 are all that is not exact.
        error = scale * (self.fp8_error(a, b, on_cuda) if self.dtype == FP8 else 2.0**-22 * (a @ b).abs())
        if args.bias is not None:
            value = value + args.bias
            error = error + 2.0**-22 * value.abs()
        return value.expand(case.m, case.n), error.expand(case.m, case.n)


class BlockwiseScaledMm(Product):
    cases = [case(m=m, n=n, k=k, out=F16 if i % 3 else BF16) for i, (m, n, k) in enumerate(SHAPES)]
    cases += HARD_CASES
    empty = ScaledMm.empty
    strided = ("mat_a", "scales_a", "scales_b")
    misaligned = ("mat_a", "mat_b", "scales_a", "scales_b")
    bad = [
        bad_shape("mat_a", (5, 271), names="mat_b"),
        bad_shape("mat_b", (272, 136)),
        bad_shape("scales_a", (5, 2)),
        bad_shape("scales_b", (3, 1)),
        bad_value("out_dtype", F32, names="output"),
    ]

    def make(self, case, draw):
        k_blocks, n_blocks = -(-case.k // 128), -(-case.n // 128)
        scale = getattr(case, "scale", 1.0)
        scales_b = draw.uniform((n_blocks, k_blocks), low=1e-4, high=1e-3)
        scales_b[:, 1::2] *= scale  # of experts that are never chosen, beside others
        return {
            **self.matrices(case, draw, FP8),
            "scales_a": draw.uniform((k_blocks, case.m), low=1e-4, high=1e-3).t(),
            "scales_b": scales_b.t(),
            "out_dtype": case.out,
        }

    def value_and_error(self, case, args, on_cuda):
        a = args.mat_a.double() * args.scales_a.double().repeat_interleave(128, 1)[:, : case.k]
        scales_b = args.scales_b.double().repeat_interleave(128, 0).repeat_interleave(128, 1)
        b = args.mat_b.double() * scales_b[: case.k, : case.n]
        return a @ b, self.fp8_error(a, b, on_cuda, stretch=128)


SCALED = [
    ScaledMm(name="fp8_scaled_mm"),
    ScaledMm(name="int8_scaled_mm", dtype=torch.int8),
    BlockwiseScaledMm(name="fp8_blockwise_scaled_mm"),
]

# A case with a bias as the typical one.
WITH_BIAS = {"cases": [case(m=9, n=40, k=256, out=BF16, bias=True)], "empty": [], "bad": [bad_shape("bias", (39,))]}
test_scaled_mm = operator_tests(
    *SCALED,
    ScaledMm(name="fp8_scaled_mm", **WITH_BIAS),
    ScaledMm(name="int8_scaled_mm", dtype=torch.int8, **WITH_BIAS),
)


@pytest.mark.parametrize("operator", SCALED, ids=str)
def test_few_rows_have_the_bits_of_many_on_a_cpu(operator):
    """The weights are streamed past up to four rows, and more go by tiles; with AMX up to 16 share one tile."""
    import sgl_kernel

    args = operator.make(case(m=30, n=50, k=1200, out=BF16), Draw("cpu", 0))
    function = getattr(sgl_kernel, operator.name)
    many = function(*args.values())
    for rows in range(1, 5):
        few = args | {"mat_a": args["mat_a"][:rows], "scales_a": args["scales_a"][:rows]}
        assert_same_bits(f"{rows} rows", function(*few.values()), many[:rows])


def e4m3(device, *shape, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 40
    return values.clamp(-448, 448).to(FP8).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m", [4, 200])
def test_every_e4m3_number_is_multiplied_exactly(m, device):
    import sgl_kernel

    numbers = torch.arange(256, dtype=torch.uint8)
    numbers = numbers[(numbers & 127) != 127].view(FP8)
    one = torch.ones((), device=device)
    a = torch.zeros(m, 256, dtype=torch.uint8)
    a[1, : len(numbers)] = numbers.view(torch.uint8)
    identity = torch.eye(256).to(FP8)
    result = sgl_kernel.fp8_scaled_mm(a.view(FP8).to(device), identity.to(device).t(), one, one, BF16).cpu()
    assert torch.equal(result[1, : len(numbers)], numbers.to(BF16))
    assert (result[[0, *range(2, m)]] == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m", [3, 150])
def test_nan_and_infinity_stay_in_their_row(m, device):
    import sgl_kernel

    a, b = e4m3("cpu", m, 256), e4m3("cpu", 64, 256, seed=1)
    a.view(torch.uint8)[1, 77] = 0x7F
    scales_a, scales_b = torch.full((m,), 1e-3), torch.full((64,), 1e-3)
    scales_a[2] = float("inf")
    inputs = [t.to(device) for t in (a, b, scales_a, scales_b)]
    result = sgl_kernel.fp8_scaled_mm(inputs[0], inputs[1].t(), inputs[2], inputs[3], F16).cpu()
    assert result[1].isnan().all()
    assert not result[2].isfinite().any()
    assert result[[0, *range(3, m)]].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m", [2, 140])
def test_blocks_with_tiny_scales_count_for_nothing(m, device):
    """Scales of 1e-23, of experts that are never chosen: zeros or tiny numbers, no NaN."""
    import sgl_kernel

    a, b = e4m3(device, m, 512), e4m3(device, 128, 512, seed=1)
    scales_a, scales_b = torch.full((m, 4), 1e-23, device=device), torch.full((4, 1), 1e-23, device=device)
    result = sgl_kernel.fp8_blockwise_scaled_mm(a, b.t(), scales_a, scales_b, BF16)
    assert result.isfinite().all() and (result.abs() < 1e-30).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m", [1, 150])
def test_the_largest_int8_sums(m, device):
    import sgl_kernel

    k = 131071
    a, b = (torch.full((rows, k), -128, dtype=torch.int8, device=device) for rows in (m, 8))
    one = torch.ones((), device=device)
    result = sgl_kernel.int8_scaled_mm(a, b.t(), one, one * 2.0**-20, BF16)
    assert (result == 2048).all()  # 131071 / 64, rounded
    with pytest.raises(ValueError, match=r"^int8_scaled_mm: .*131071"):
        wide = torch.zeros(1, k + 1, dtype=torch.int8, device=device)
        sgl_kernel.int8_scaled_mm(wide, wide.t(), one, one, BF16)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("operator", SCALED, ids=str)
@pytest.mark.parametrize("k", [1000, 1024])
def test_one_row_may_have_any_stride(k, operator, device):
    import sgl_kernel

    args = operator.make(case(m=1, n=64, k=k, out=BF16), Draw(device, 0))
    function = getattr(sgl_kernel, operator.name)
    other = args | {"mat_a": args["mat_a"].as_strided((1, k), (1, 1))}
    assert_same_bits("a row with stride 1", function(*other.values()), function(*args.values()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["fp8_scaled_mm", "int8_scaled_mm"])
def test_k_of_zero_gives_the_bias(name, device):
    import sgl_kernel

    dtype = FP8 if name == "fp8_scaled_mm" else torch.int8
    a, b = (torch.empty(rows, 0, dtype=dtype, device=device) for rows in (3, 16))
    one = torch.ones((), device=device)
    bias = torch.arange(16.0, device=device).half()
    multiply = getattr(sgl_kernel, name)
    assert torch.equal(multiply(a, b.t(), one, one, F16, bias), bias.expand(3, 16))
    assert (multiply(a, b.t(), one, one, F16) == 0).all()


@pytest.mark.cuda
@pytest.mark.parametrize("k", [128, 1536, 8320])
@pytest.mark.parametrize("n", [576, 2112, 4104, 17408])
@pytest.mark.parametrize("m", [16, 48, 64, 100, 128, 129, 256, 400, 512, 1024, 2500])
@pytest.mark.parametrize("name", ["fp8_scaled_mm", "int8_scaled_mm", "fp8_blockwise_scaled_mm"])
def test_tiles_of_all_sizes(name, m, n, k):
    """Shapes that between them choose each kernel of the GPU, many tiles a block included."""
    import sgl_kernel

    generator = torch.Generator("cuda").manual_seed(0)

    def make(rows):
        if name == "int8_scaled_mm":
            return torch.randint(-128, 128, (rows, k), generator=generator, device="cuda", dtype=torch.int8)
        return (torch.randn(rows, k, generator=generator, device="cuda") * 40).clamp(-448, 448).to(FP8)

    a, b = make(m), make(n)
    blockwise = name == "fp8_blockwise_scaled_mm"
    k_blocks, n_blocks = -(-k // 128), -(-n // 128)
    scales_a = torch.rand((k_blocks, m) if blockwise else (m,), device="cuda").t() * 1e-3
    scales_b = torch.rand((n_blocks, k_blocks) if blockwise else (n,), device="cuda").t() * 1e-3
    if blockwise:
        wide_a = a.float() * scales_a.repeat_interleave(128, 1)[:, :k]
        wide_b = b.float() * scales_b.repeat_interleave(128, 0).repeat_interleave(128, 1)[:k, :n].t()
    else:
        wide_a, wide_b = a.float() * scales_a[:, None], b.float() * scales_b[:, None]
    wide_a, wide_b = wide_a.double(), wide_b.double().t()
    expected = wide_a @ wide_b
    multiply = getattr(sgl_kernel, name)
    result = multiply(a, b.t(), scales_a, scales_b, BF16)
    stretch = 128 if blockwise else STRETCH
    error = 2.0**-20 * (wide_a.abs() @ wide_b.abs()) if name == "int8_scaled_mm" else fp8_error(wide_a, wide_b, stretch)
    bound = 2.0**-8 * expected.abs() + error
    assert ((result.double() - expected).abs() <= bound).all()
    assert_same_bits("again", multiply(a, b.t(), scales_a, scales_b, BF16), result)


@pytest.mark.cuda
@pytest.mark.parametrize("n, k", [(3072, 4096), (7168, 4096), (9216, 4096), (12288, 256), (24576, 384)])
@pytest.mark.parametrize("m", [3, 40, 100])
@pytest.mark.parametrize("name", ["fp8_scaled_mm", "int8_scaled_mm", "fp8_blockwise_scaled_mm"])
def test_few_rows_in_tiles_of_all_widths(name, m, n, k):
    test_tiles_of_all_sizes(name, m, n, k)
