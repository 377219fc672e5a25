"""More than 2^31 elements, where rows are not told apart by the harness: the last rows have the bits that they have
alone."""

import pytest
import torch

from tests.harness import assert_same_bits

F16, BF16, FP8, I32, U8 = torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int32, torch.uint8
TILE = 128  # rows that share a tile of FP4's scales
ROWS, K = 2**18 + TILE, 8192
pytestmark = [pytest.mark.cuda, pytest.mark.large]


@pytest.fixture
def x():
    torch.manual_seed(0)
    try:
        return torch.randn(ROWS, K, dtype=BF16, device="cuda")
    except torch.OutOfMemoryError as error:
        pytest.skip(f"not enough memory: {str(error).splitlines()[0]}")


def test_scaled_fp4_quant(x):
    import sgl_kernel

    scale = torch.full((1,), 600.0, device="cuda")
    values, scales = sgl_kernel.scaled_fp4_quant(x, scale)
    expected, expected_scales = sgl_kernel.scaled_fp4_quant(x[-TILE:], scale)
    assert_same_bits("values", values[-TILE:], expected)
    assert_same_bits("scales", scales[-TILE:].view(U8), expected_scales.view(U8))


def test_scaled_fp4_experts_quant(x):
    import sgl_kernel

    scale = torch.tensor([300.0, 600.0], device="cuda")
    offsets = torch.tensor([0, ROWS - TILE, ROWS], dtype=I32, device="cuda")
    values, scales = sgl_kernel.scaled_fp4_experts_quant(x, scale, offsets, offsets, 1)
    expected, expected_scales = sgl_kernel.scaled_fp4_quant(x[-TILE:], scale[1:])
    assert_same_bits("values", values[-TILE:], expected)
    assert_same_bits("scales", scales[ROWS - TILE : ROWS].view(U8), expected_scales.view(U8))


def test_fused_group_quant(x):
    """2^31 elements are read, and half of them written."""
    import sgl_kernel

    def quantized(x):
        q = torch.empty(x.shape[0], K // 2, dtype=FP8, device="cuda")
        s = torch.empty(x.shape[0], K // 256, device="cuda")
        sgl_kernel.sgl_per_token_group_quant_8bit(x, q, s, 128, 1e-10, -448.0, 448.0, False, True)
        return q.view(U8), s

    for name, whole, expected in zip("qs", quantized(x), quantized(x[-TILE:]), strict=True):
        assert_same_bits(name, whole[-TILE:], expected)


@pytest.mark.parametrize("is_static", [False, True])
def test_per_tensor(x, is_static):
    import sgl_kernel

    x[-1, -1] = 1000.0  # the largest of all is the last
    scale = torch.full((1,), 1000.0 / 448 if is_static else -1.0, device="cuda")
    q = torch.empty_like(x, dtype=FP8)
    sgl_kernel.sgl_per_tensor_quant_fp8(x, q, scale, is_static)
    assert scale.item() == torch.tensor(1000.0 / 448).item()
    expected = torch.empty_like(q[-TILE:])
    sgl_kernel.sgl_per_tensor_quant_fp8(x[-TILE:], expected, scale, True)
    assert_same_bits("q", q[-TILE:].view(U8), expected.view(U8))


def test_awq_dequantize():
    import sgl_kernel

    torch.manual_seed(0)
    try:
        weight = torch.randint(-(2**31), 2**31, (ROWS, K // 8), dtype=I32, device="cuda")
        zeros, scales = weight[: ROWS // TILE].clone(), torch.randn(ROWS // TILE, K, dtype=F16, device="cuda")
        whole = sgl_kernel.awq_dequantize(weight, scales, zeros)
    except torch.OutOfMemoryError as error:
        pytest.skip(f"not enough memory: {str(error).splitlines()[0]}")
    expected = sgl_kernel.awq_dequantize(weight[-TILE:], scales[-1:], zeros[-1:])
    assert_same_bits("result", whole[-TILE:], expected)
