"""bmm_fp8, against products in float64."""

import pytest
import torch

from tests.gemm.fp8_sums import fp8_error
from tests.gemm.hard_data import activations, weights
from tests.harness import Expected, Operator, assert_close, assert_same_bits, bad_alias, bad_shape, case, operator_tests

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
SMALLEST = {E4M3: 2.0**-9, E5M2: 2.0**-16}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


class BmmFp8(Operator):
    cases = [
        case(batches=3, m=5, n=72, k=144, a=E4M3, b=E4M3, out=BF16),
        case(batches=2, m=130, n=136, k=272, a=E4M3, b=E5M2, out=F16),
        case(batches=5, m=17, n=128, k=64, a=E5M2, b=E4M3, out=BF16),
        case(batches=2, m=16, n=40, k=96, a=E5M2, b=E5M2, out=BF16),
        case(batches=1, m=48, n=80, k=512, a=E4M3, b=E4M3, out=F16),
        # Few rows with a short K.
        case(batches=4, m=11, n=72, k=112, a=E4M3, b=E4M3, out=F16),
        case(batches=3, m=8, n=264, k=128, a=E4M3, b=E4M3, out=BF16),
        case(batches=2, m=9, n=136, k=208, a=E4M3, b=E4M3, out=BF16),
        case(batches=2, m=8, n=72, k=512, a=E4M3, b=E4M3, out=F16),
        case(batches=2, m=2, n=64, k=272, a=E4M3, b=E4M3, out=BF16),
        # Rows that copies of 16 bytes do not take; nothing to add.
        case(batches=4, m=7, n=33, k=65, a=E4M3, b=E4M3, out=BF16),
        case(batches=2, m=3, n=8, k=0, a=E4M3, b=E4M3, out=BF16),
        case(batches=2, m=3, n=24, k=32768, a=E4M3, b=E4M3, out=BF16, data="positive"),
        case(batches=2, m=17, n=24, k=32768, a=E5M2, b=E4M3, out=BF16),
        case(batches=2, m=18, n=24, k=4096, a=E4M3, b=E4M3, out=BF16, data="cancelling"),
        case(batches=2, m=20, n=72, k=512, a=E4M3, b=E5M2, out=BF16, data="outliers"),
        case(batches=2, m=2, n=16, k=256, a=E5M2, b=E4M3, out=BF16, scale=1e-23),
        case(batches=2, m=5, n=40, k=384, a=E4M3, b=E4M3, out=BF16, data="subnormal"),
        case(batches=2, m=20, n=40, k=384, a=E5M2, b=E5M2, out=BF16, data="subnormal"),
    ]
    empty = [case(batches=batches, m=m, n=n, k=32, a=E4M3, b=E4M3, out=F16) for batches, m, n in [(0, 4, 8), (2, 0, 8)]]
    rows = {"A": 1, "D": 1}
    strided = ("A", "D")
    misaligned = ("A", "B", "D", "A_scale", "B_scale")
    bad = [
        bad_shape("A", (3, 5, 143), names="B"),
        bad_shape("A", (2, 5, 144), names="B"),
        bad_shape("B", (3, 144, 72)),
        bad_shape("D", (3, 5, 71)),
        bad_alias("D", "A"),
        bad_alias("D", "B"),
        bad_shape("A_scale", (3,)),
        bad_shape("B_scale", (0,)),
    ]
    any_value = {"workspace_buffer": "not looked at", "cublas_handle": "not looked at"}
    accepts = {
        "A_scale.rank": "one element of any rank",
        "B_scale.rank": "one element of any rank",
        "workspace_buffer.dtype": "not looked at",
        "workspace_buffer.rank": "not looked at",
        "workspace_buffer.device": "not looked at",
    }

    def make(self, case, draw):
        data, scale = getattr(case, "data", None), getattr(case, "scale", 1.0)

        def quantized(numbers, dtype):
            factor = 2 * SMALLEST[dtype] if data == "subnormal" else 40
            return (factor * numbers).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)

        return {
            "A": quantized(activations(draw, (case.batches, case.m, case.k), data), case.a),
            "B": quantized(weights(draw, (case.batches, case.n, case.k), data), case.b).transpose(1, 2),
            "D": draw.empty((case.batches, case.m, case.n), case.out),
            "A_scale": draw.uniform((1,), low=1e-3 * scale, high=1e-2 * scale),
            "B_scale": draw.uniform((1,), low=1e-3, high=1e-2),
            "workspace_buffer": draw.empty((16,), torch.uint8),
            "cublas_handle": 0,
        }

    def compare(self, case, args, outputs):
        def error_of(a, b):  # as fp8_scaled_mm's
            return fp8_error(a, b) if outputs["D"].is_cuda else (24 + a.shape[1] / 128) * 2.0**-24 * (a.abs() @ b.abs())

        scale = args.A_scale.double() * args.B_scale.double()
        a, b = args.A.double(), args.B.double()
        error = torch.stack([error_of(*matrices) for matrices in zip(a, b, strict=True)]) if case.batches else a @ b
        for name, tensor in outputs.items():
            assert_close(name, tensor, Expected(scale * (a @ b), scale * error * 2**24), 1, 1)

    def python(self, sgl_kernel, args):
        a, b, d, a_scale, b_scale, *_ = args.values()
        return sgl_kernel.bmm_fp8(a, b, a_scale, b_scale, d.dtype, d)

    forms = {
        "functional": lambda sgl_kernel, args: {
            "D": sgl_kernel.bmm_fp8(args.A, args.B, args.A_scale, args.B_scale, args.D.dtype)
        }
    }


test_bmm_fp8 = operator_tests(
    BmmFp8(name="bmm_fp8"),
    # The other format as the typical case: on Hopper its kernel is another.
    BmmFp8(name="bmm_fp8", cases=[case(batches=3, m=5, n=72, k=144, a=E5M2, b=E4M3, out=F16)], empty=[]),
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_every_number_is_multiplied_exactly(dtype, device):
    import sgl_kernel

    numbers = torch.arange(256, dtype=torch.uint8).view(dtype)
    numbers = numbers[numbers.float().isfinite()]
    a = torch.zeros(2, 4, 256, dtype=torch.uint8)
    a[1, 2, : len(numbers)] = numbers.view(torch.uint8)
    identity = torch.eye(256).to(E4M3).expand(2, 256, 256).contiguous()
    one = torch.ones(1, device=device)
    result = sgl_kernel.bmm_fp8(a.view(dtype).to(device), identity.to(device).mT, one, one, BF16).cpu()
    assert torch.equal(result[1, 2, : len(numbers)], numbers.to(BF16))
    assert (result[0] == 0).all() and (result[1, [0, 1, 3]] == 0).all()


@pytest.mark.cuda
@pytest.mark.parametrize("shared", ["neither", "A", "B"])
@pytest.mark.parametrize(
    ("batches", "m", "n", "k"),
    [(5, 2048, 2048, 256), (5, 2000, 2056, 144), (300, 1, 256, 48), (5, 1, 128, 512), (200, 16, 512, 128)],
)
def test_batches_of_all_sizes(batches, m, n, k, shared):
    """Each with operands of its own, the first ones side by side, as heads; and with one operand that all share."""
    import sgl_kernel

    generator = torch.Generator("cuda").manual_seed(0)
    a = torch.randn(m, 1 if shared == "A" else batches, k, generator=generator, device="cuda").to(E4M3).transpose(0, 1)
    b = torch.randn(1 if shared == "B" else batches, n, k, generator=generator, device="cuda").to(E4M3)
    a, b = a.expand(batches, m, k), b.expand(batches, n, k)
    one = torch.ones(1, device="cuda")
    result = sgl_kernel.bmm_fp8(a, b.mT, one, one, BF16)
    expected, magnitude = a.double() @ b.double().mT, a.double().abs() @ b.double().abs().mT
    assert ((result.double() - expected).abs() <= 2.0**-8 * expected.abs() + 2.0**-12 * magnitude).all()
    assert_same_bits("again", sgl_kernel.bmm_fp8(a, b.mT, one, one, BF16), result)
