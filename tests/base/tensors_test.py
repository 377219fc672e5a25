"""What the bindings take for a tensor, and what they say of anything else."""

import pytest
import torch

import sgl_kernel
from sgl_kernel import _elementwise as native

OUT, X, WEIGHT = torch.empty(2, 64), torch.randn(2, 64), torch.ones(64)


class Broken:
    """Says that it is a tensor, and is none."""

    def __dlpack_device__(self):
        raise BufferError("no memory\nand more to tell")

    def __dlpack__(self):
        raise NotImplementedError


def test_any_library_with_dlpack():
    out = torch.empty_like(X)
    native.rmsnorm(out.numpy(), X.numpy(), WEIGHT.numpy(), 1e-6, False)
    assert torch.equal(out, sgl_kernel.rmsnorm(X, WEIGHT))


def test_parameters_and_gradients():
    weight, x = torch.nn.Parameter(WEIGHT), X.clone().requires_grad_()
    assert torch.equal(sgl_kernel.rmsnorm(x, weight), sgl_kernel.rmsnorm(X, WEIGHT))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (X.to("meta"), "cannot be described by DLPack: Cannot pack tensors on meta"),
        (X.to_sparse(), "cannot be described by DLPack: .*storage"),
        (Broken(), "cannot be described by DLPack: no memory"),
        (X.to(torch.complex64), "has DLPack dtype"),
        (X[(None,) * 9], "has 11 dimensions"),
    ],
)
def test_tensors_that_have_no_view(value, said):
    with pytest.raises(ValueError, match=f"^rmsnorm: input {said}[^\n]*$"):
        sgl_kernel.rmsnorm(OUT, value, WEIGHT)


@pytest.mark.parametrize("value", [None, X.to_sparse()])
def test_torch_ops_without_a_view(value):
    with pytest.raises((ValueError, TypeError), match=r"^rmsnorm: weight "):
        torch.ops.sgl_kernel.rmsnorm(OUT, X, value, 1e-6, True)


def test_no_tensor_at_all():
    with pytest.raises(TypeError, match="rmsnorm: input is a str, expected Tensor"):
        sgl_kernel.rmsnorm(OUT, "x", WEIGHT)
    with pytest.raises(TypeError, match=r"^rmsnorm\(\) missing 1 required positional argument: 'weight'"):
        sgl_kernel.rmsnorm(X)


def test_no_dimensions():
    for arguments in ((torch.tensor(1.0),), (torch.tensor(1.0), torch.tensor(1.0))):
        with pytest.raises(ValueError, match=r"silu_and_mul: .* has 0 dimensions"):
            sgl_kernel.silu_and_mul(*arguments)
