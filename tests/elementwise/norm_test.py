"""rmsnorm, fused_add_rmsnorm and Gemma's forms of them."""

import pytest
import torch

from tests.harness import Operator, bad_alias, bad_shape, bad_value, case, operator_tests

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


class Norm(Operator):
    gemma = False
    # Every path: one vector, a tail, less than a vector, a row per warp, per block, and in pieces; many short rows,
    # many long ones.
    cases = [
        case(dtype=BF16, rows=5, hidden=4096, eps=1e-6),
        case(dtype=F16, rows=3, hidden=576, eps=1e-5),
        case(dtype=F32, rows=2, hidden=4097, eps=1e-6),
        case(dtype=BF16, rows=300, hidden=128, eps=1e-6),
        case(dtype=BF16, rows=2, hidden=4097, eps=1e-6),
        case(dtype=F16, rows=7, hidden=1, eps=0.0),
        case(dtype=BF16, rows=9, hidden=7, eps=1e-6),
        case(dtype=F32, rows=2, hidden=16384, eps=1e-6),
        case(dtype=F16, rows=1, hidden=33000, eps=1e-6),
        case(dtype=BF16, rows=17_000, hidden=128, eps=1e-6),
        case(dtype=F16, rows=610, hidden=3592, eps=1e-6),
        case(dtype=F16, rows=3800, hidden=576, eps=1e-6),
        case(dtype=BF16, rows=11_000, hidden=200, eps=1e-6),
        case(dtype=F32, rows=5700, hidden=192, eps=1e-6),
        case(dtype=F16, rows=5000, hidden=440, eps=1e-6),
        case(dtype=BF16, rows=2900, hidden=760, eps=1e-6),
        case(dtype=BF16, rows=220, hidden=10_240, eps=1e-6),
        case(dtype=BF16, rows=2**19 + 3, hidden=4096, eps=1e-6, large=True),
    ]
    empty = [case(dtype=BF16, rows=0, hidden=4096, eps=1e-6), case(dtype=F32, rows=3, hidden=0, eps=1e-6)]
    bad = [bad_value("eps", -1.0), bad_value("eps", float("nan")), bad_shape("weight", (7,))]

    def weights(self, case, draw):
        return draw.normal((case.hidden,), case.dtype, mean=0.0 if self.gemma else 1.0, std=0.2)

    def normalize(self, x, args):
        weight = args.weight + 1 if self.gemma else args.weight
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + args.eps) * weight


class RmsNorm(Norm):
    strided = misaligned = ("output", "input")
    batch = {"output": 0, "input": 0}
    bad = [*Norm.bad, bad_shape("output", (5, 4095)), bad_alias("weight", "output", names="weight|output")]

    def make(self, case, draw):
        shape = (case.rows, case.hidden)
        return {
            "output": draw.empty(shape, case.dtype),
            "input": draw.normal(shape, case.dtype, std=3.0),
            "weight": self.weights(case, draw),
            "eps": case.eps,
            "enable_pdl": True,
        }

    def reference(self, case, args):
        return {"output": self.normalize(args.input, args)}

    @property
    def forms(self):
        return {
            "functional": lambda kernels, a: {
                "output": getattr(kernels, self.name)(a.input, a.weight, a.eps, enable_pdl=a.enable_pdl)
            }
        }


class FusedAddRmsNorm(Norm):
    strided = misaligned = ("input", "residual")
    batch = {"input": 0, "residual": 0}
    inout = ("input", "residual")
    bad = [*Norm.bad, bad_shape("residual", (4, 4096)), bad_alias("residual", "input")]

    def make(self, case, draw):
        shape = (case.rows, case.hidden)
        return {
            "input": draw.normal(shape, case.dtype, std=3.0),
            "residual": draw.normal(shape, case.dtype),
            "weight": self.weights(case, draw),
            "eps": case.eps,
            "enable_pdl": False,
        }

    def reference(self, case, args):
        # What is normalized is the sum as it was rounded.
        residual = (args.input + args.residual).to(case.dtype).double()
        return {"residual": residual, "input": self.normalize(residual, args)}


test_norm = operator_tests(
    RmsNorm(name="rmsnorm"),
    RmsNorm(name="gemma_rmsnorm", gemma=True),
    FusedAddRmsNorm(name="fused_add_rmsnorm"),
    FusedAddRmsNorm(name="gemma_fused_add_rmsnorm", gemma=True),
)


def test_in_place():
    import sgl_kernel

    x = torch.randn(3, 100)
    weight = torch.randn(100)
    expected = sgl_kernel.rmsnorm(x, weight)
    assert sgl_kernel.rmsnorm(x, weight, out=x) is x
    assert torch.equal(x, expected)


@pytest.mark.parametrize("name", ["rmsnorm", "gemma_rmsnorm"])
def test_calling_forms(name):
    """Every way to write the two forms gives the same; what fits neither is a TypeError."""
    import sgl_kernel

    norm = getattr(sgl_kernel, name)
    x, weight, out = torch.randn(3, 64), torch.randn(64), torch.empty(3, 64)
    expected = norm(x, weight, 1e-5)
    for call in (
        lambda: norm(x, weight, eps=1e-5),
        lambda: norm(input=x, weight=weight, eps=1e-5),
        lambda: norm(x, weight=weight, eps=1e-5, enable_pdl=False),
        lambda: norm(x, weight, 1e-5, out),
        lambda: norm(x, weight, 1e-5, out, True),
        lambda: norm(x, weight, 1e-5, out=out),
    ):
        assert torch.equal(call(), expected)
    for call in (
        lambda: norm(out, x, weight, 1e-5),
        lambda: norm(out, x, weight, eps=1e-5, enable_pdl=True),
        lambda: norm(out, x, weight, 1e-5, True),
        lambda: norm(output=out, input=x, weight=weight, eps=1e-5),
    ):
        out.zero_()
        assert call() is None
        assert torch.equal(out, expected)
    for call in (
        lambda: norm(x),
        lambda: norm(x, weight, 1e-5, eps=1e-5),
        lambda: norm(x, weight, input=x),
        lambda: norm(x, weight, epsilon=1e-5),
        lambda: norm(out, x, weight, out=out),
        lambda: norm(x, weight, "1e-5"),
    ):
        with pytest.raises(TypeError):
            call()


def test_operator_runs_without_python():
    """torch.ops reaches the native function itself, where torch lets it (bind/torch_library.h)."""
    import sgl_kernel

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        pytest.skip("torch has no stable C interface")
    sgl_kernel.rmsnorm(torch.randn(3, 64), torch.randn(64))  # loads the family
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key("sgl_kernel::rmsnorm", key)


def test_tensors_that_no_operator_takes():
    """What the binding itself refuses names the operator and the argument, too."""
    import sgl_kernel

    x, weight, out = torch.randn(3, 64), torch.randn(64), torch.empty(3, 64)
    for wrong, what in ((weight.to(torch.complex64), "has "), (torch.zeros(1, 1, 1, 1, 1, 1, 1), "has 7 dimensions")):
        with pytest.raises(ValueError, match=f"^rmsnorm: weight {what}"):
            sgl_kernel.rmsnorm(x, wrong)
        with pytest.raises(ValueError, match=f"^rmsnorm: weight {what}"):
            torch.ops.sgl_kernel.rmsnorm(out, x, wrong, 1e-6, False)
