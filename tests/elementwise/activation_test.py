"""silu_and_mul, gelu_tanh_and_mul and gelu_and_mul."""

import math

import pytest
import torch

from tests.harness import Expected, Operator, bad_alias, bad_shape, case, operator_tests

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


class GatedActivation(Operator):
    # Rows of many blocks and rows that share one; whole vectors, and widths that no vector divides; one row and many.
    cases = [
        case(dtype=BF16, rows=(3,), dim=1536),
        case(dtype=F16, rows=(1,), dim=12288),
        case(dtype=F32, rows=(5,), dim=96),
        case(dtype=BF16, rows=(2, 3, 2), dim=40),
        case(dtype=BF16, rows=(300,), dim=8),
        case(dtype=F16, rows=(7,), dim=1),
        case(dtype=BF16, rows=(4,), dim=1365),
        case(dtype=F16, rows=(700,), dim=12288),
        case(dtype=BF16, rows=(2**18 + 1,), dim=8192, large=True),
    ]
    empty = [case(dtype=BF16, rows=(0,), dim=64), case(dtype=F32, rows=(3,), dim=0)]
    bad = [bad_shape("out", (3, 1535)), bad_shape("out", (2, 1536)), bad_shape("input", (3, 3071))]
    strided = misaligned = ("out", "input")
    batch = {"out": 0, "input": 0}
    # exp's argument, up to 100 here, is rounded before it counts: an error of that many roundings.
    f32_roundings = 256

    def make(self, case, draw):
        return {
            "out": draw.empty((*case.rows, case.dim), case.dtype),
            "input": draw.normal((*case.rows, 2 * case.dim), case.dtype, std=3.0),
        }

    def reference(self, case, args):
        gate, up = args.input[..., : case.dim], args.input[..., case.dim :]
        value = self.activate(gate) * up
        if self.name == "gelu_and_mul":  # the tail is a difference: 1 + erf(x) where erf(x) is close to -1
            return {"out": Expected(value, (gate * up).abs())}
        # Close to the smallest floats, where exp overflows, 0 will do.
        return {"out": Expected(value, value.abs() + 1e-30)}

    @property
    def forms(self):
        return {
            "functional": lambda kernels, a: {"out": getattr(kernels, self.name)(a.input)},
            "functional, out": lambda kernels, a: {"out": getattr(kernels, self.name)(a.input, a.out)},
            "functional, out=": lambda kernels, a: {"out": getattr(kernels, self.name)(a.input, out=a.out)},
        }


def gelu_tanh(x):
    # (1 + tanh(u)) / 2 = sigmoid(2u), which keeps its digits far below 0.
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


test_activation = operator_tests(
    GatedActivation(
        name="silu_and_mul",
        activate=torch.nn.functional.silu,
        bad=[*GatedActivation.bad, bad_alias("out", "input")],
    ),
    GatedActivation(name="gelu_tanh_and_mul", activate=gelu_tanh),
    GatedActivation(name="gelu_and_mul", activate=torch.nn.functional.gelu),
)


@pytest.mark.parametrize("name", ["silu_and_mul", "gelu_tanh_and_mul", "gelu_and_mul"])
def test_ambiguous_forms_are_refused(name):
    import sgl_kernel

    x = torch.randn(3, 8)
    with pytest.raises(TypeError, match=f"{name}: the last dimensions are 8 and 8"):
        getattr(sgl_kernel, name)(x, x.clone())


@pytest.mark.parametrize("name", ["silu_and_mul", "gelu_tanh_and_mul", "gelu_and_mul"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_extremes(name, device):
    """No overflow inside where the result is finite."""
    import sgl_kernel

    gate = torch.tensor([[-1e4, -200.0, -90.0, -0.0, 0.0, 90.0, 200.0, 1e4]], device=device)
    out = getattr(sgl_kernel, name)(torch.cat([gate, torch.ones_like(gate)], dim=-1))
    assert torch.equal(out, gate.clamp(min=0.0)) or torch.allclose(out, gate.clamp(min=0.0), atol=1e-30)
