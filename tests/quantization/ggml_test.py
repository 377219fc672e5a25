"""ggml_dequantize, ggml_mul_mat_vec_a8 and ggml_mul_mat_a8, against the gguf package."""

import numpy as np
import pytest
import torch

from tests.harness import Expected, Operator, assert_close, assert_same_bits, bad_shape, bad_value, case, operator_tests
from tests.quantization.ggml_weights import (
    TYPES,
    block,
    dequantized,
    f32_bound,
    group_products,
    groups_of,
    number,
    put_scale,
    quantized,
    random_weight,
)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def f16_bound(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The same for a product in f16. Both terms, an element of W and one of X are rounded to 11 bits, or below 2^-19 to
    multiples of 2^-29: a scale then, which a quant of at most 128 multiplies, and an offset."""
    roundings = 2 + 2 + 1 + 1
    return roundings * 2.0**13 * group_products(x, w) + 3 * x.abs().sum(-1, keepdim=True) + f32_bound(x, w)


def multiplies_in_f16(device, num_tokens: int, row: int, k: int) -> bool:
    """Whether ggml_mul_mat_a8 does: on Hopper a product of at least kFewProducts (ggml_mul_mat_sm90a.cu)."""
    on_hopper = torch.device(device).type == "cuda" and torch.cuda.get_device_capability() == (9, 0)
    return on_hopper and num_tokens * row * k >= 2**28


class Dequantize(Operator):
    cases = [case(type="Q4_1", m=5, n=768, dtype=F16)]
    cases += [
        case(type=t, m=m, n=n, dtype=d) for t in TYPES for m, n, d in [(7, 768, F32), (1, 256, F16), (3, 512, BF16)]
    ]
    cases += [case(type="Q8_0", m=3, n=32, dtype=None), case(type="Q5_K", m=1300, n=2048, dtype=F32)]
    empty = [case(type="Q4_K", m=0, n=256, dtype=F32), case(type="Q4_0", m=3, n=0, dtype=F32)]
    bad = [
        bad_value("type", 0),
        bad_value("type", 15),
        bad_value("type", -1),
        bad_value("m", 4, names="W"),
        bad_value("m", 2**62, names="W"),  # not allocated before it is refused
        bad_value("m", -5),
        bad_value("n", 769),
        bad_value("n", -32),
        bad_value("n", 736, names="W"),
        bad_shape("W", (5, 481)),
        bad_value("dtype", torch.int32, names="result"),
    ]
    accepts = {"W.rank": "the bytes count, not their shape"}

    def make(self, case, draw):
        W = draw.tensor(random_weight(case.type, case.m, case.n), torch.uint8)
        return {"W": W, "type": number(case.type), "m": case.m, "n": case.n, "dtype": case.dtype}

    def compare(self, case, args, outputs):
        assert_same_bits("result", outputs["result"], dequantized(args.W, case.type).to(case.dtype or F16))


class MulMat(Operator):
    cases = [case(type="Q4_1", dtype=F16, num_tokens=5, row=70, k=576)]
    cases += [
        case(type=t, dtype=d, num_tokens=n, row=r, k=k)
        for t in TYPES
        for n, r, k, d in [(1, 33, 768, F32), (3, 8, 256, BF16), (23, 17, 1280, F16), (70, 129, 512, F32)]
    ]
    # One thread's strips and pieces, one row, a block of 128 tokens and what is left of it.
    cases += [
        case(type=t, dtype=F32, num_tokens=n, row=r, k=k)
        for t in ("Q4_1", "Q8_0", "Q6_K")
        for n, r, k in [(1, 1, 4096), (1, 3000, 1536), (4, 1, 2304), (145, 200, 1536), (300, 5, 256)]
    ]
    # Several tiles and chunks of a GPU's block; and the most rows that a lane shares with others.
    cases += [
        case(type=t, dtype=BF16, num_tokens=n, row=r, k=k)
        for t in ("Q4_0", "Q8_0", "Q4_K")
        for n, r, k in [(40, 1100, 4864), (2, 8200, 768)]
    ]
    empty = [
        case(type="Q4_1", dtype=F16, num_tokens=0, row=70, k=576),
        case(type="Q4_K", dtype=F32, num_tokens=3, row=0, k=256),
        case(type="Q4_K", dtype=F32, num_tokens=3, row=5, k=0),
    ]
    batch = {"X": 0, "result": 0}
    strided = misaligned = ("X",)
    bad = [
        bad_value("type", 4),
        bad_value("type", 30),
        bad_value("row", 71, names="W"),
        bad_value("row", 2**62, names="W"),  # not allocated before it is refused
        bad_value("row", -1),
        bad_shape("X", (5, 575)),
        bad_shape("X", (5, 608), names="W"),
        bad_shape("W", (69, 360)),
        bad_shape("W", (70, 361)),
    ]
    f32_roundings = 1  # the magnitude holds their number

    def make(self, case, draw):
        W = draw.tensor(random_weight(case.type, case.row, case.k), torch.uint8)
        X = draw.normal((case.num_tokens, case.k), case.dtype)
        return {"W": W, "X": X, "type": number(case.type), "row": case.row}

    def reference(self, case, args):
        w, x8 = dequantized(args.W, case.type), quantized(args.X)
        return {"result": Expected(x8 @ w.double().T, f32_bound(x8, w))}


class MulMatOfMany(MulMat):
    # Those of multiplies_in_f16(), at tiles' edges, and with a number of groups that is no multiple of a slice's.
    cases = MulMat.cases + [case(type=t, dtype=BF16, num_tokens=100, row=3610, k=768) for t in TYPES]
    cases += [
        case(type=t, dtype=d, num_tokens=n, row=r, k=k)
        for t in ("Q4_0", "Q8_0", "Q4_K", "Q6_K")
        for n, r, k, d in [(15, 23500, 768, F32), (30, 11801, 768, F16), (60, 5903, 768, BF16), (300, 3505, 256, F32)]
    ]
    cases += [case(type="Q4_1", dtype=BF16, num_tokens=130, row=4450, k=480)]
    batch = {}  # the bits of a row may depend on the number of rows

    def compare(self, case, args, outputs):
        if not multiplies_in_f16(outputs["result"].device, case.num_tokens, case.row, case.k):
            return super().compare(case, args, outputs)
        w = dequantized(args.W, case.type)
        expected = Expected(args.X @ w.double().T, f16_bound(args.X, w))
        assert_close("result", outputs["result"], expected, f32_roundings=1)


def flip_bound(y: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """How far the product may be off because y was rounded to the neighbour in its dtype, and to that in 8 bits."""
    groups = groups_of(y.double().abs())
    quant = groups.amax(-1, keepdim=True).expand_as(groups).flatten(-2) / 127 if y.shape[-1] else y.double()
    return (y.double().abs() * torch.finfo(dtype).eps + quant) @ w.abs().double().T


class SiluAndMulMatVec(Operator):
    cases = [case(type="Q4_1", dtype=F16, num_tokens=5, row=70, k=576)]
    cases += [
        case(type=t, dtype=d, num_tokens=n, row=r, k=k)
        for t in ("Q4_1", "Q8_0", "Q6_K", "IQ3_S")
        for n, r, k, d in [(1, 33, 768, F32), (3, 8, 256, BF16), (23, 17, 1280, F16), (1, 576, 1536, BF16)]
    ]
    cases += [case(type="Q4_0", dtype=BF16, num_tokens=8, row=9, k=12288)]  # more than a chunk of X
    # Many rows, in all the tokens or in each: a kernel makes the input first.
    cases += [
        case(type="Q4_1", dtype=BF16, num_tokens=9, row=1000, k=576),
        case(type="Q8_0", dtype=F16, num_tokens=2, row=8200, k=256),
    ]
    empty = [
        case(type="Q4_1", dtype=F16, num_tokens=0, row=70, k=576),
        case(type="Q4_K", dtype=F32, num_tokens=3, row=0, k=256),
        case(type="Q4_K", dtype=F32, num_tokens=3, row=5, k=0),
    ]
    batch = {"X": 0, "result": 0}
    strided = misaligned = ("X",)
    bad = [
        bad_value("type", 4),
        bad_value("row", 71, names="W"),
        bad_value("row", 2**62, names="W"),  # not allocated before it is refused
        bad_value("row", -1),
        bad_shape("X", (5, 1151)),
        bad_shape("X", (5, 1150)),
        bad_shape("X", (5, 576), names="W"),
        bad_shape("W", (70, 361)),
    ]
    f32_roundings = 1

    def make(self, case, draw):
        W = draw.tensor(random_weight(case.type, case.row, case.k), torch.uint8)
        X = draw.normal((case.num_tokens, 2 * case.k), case.dtype)
        return {"W": W, "X": X, "type": number(case.type), "row": case.row}

    def reference(self, case, args):
        w = dequantized(args.W, case.type)
        gate, up = args.X.double().chunk(2, dim=-1)
        y = (gate * torch.sigmoid(gate) * up).to(case.dtype)
        y8 = quantized(y)
        bound = f32_bound(y8, w) + 2.0**24 * flip_bound(y, w, case.dtype)
        return {"result": Expected(y8 @ w.double().T, bound)}


class AddRmsnormMatVec(SiluAndMulMatVec):
    batch = {"X": 0, "residual": 0, "result0": 0, "result1": 0}
    strided = misaligned = ("X", "residual")
    bad = [
        bad_value("type", 4),
        bad_value("row", 71, names="W"),
        bad_value("row", 2**62, names="W"),  # not allocated before it is refused
        bad_value("row", -1),
        bad_value("eps", -1.0),
        bad_shape("X", (5, 575)),
        bad_shape("X", (5, 608), names="W"),
        bad_shape("W", (70, 361)),
        bad_shape("residual", (4, 576)),
        bad_shape("norm_weight", (575,)),
    ]

    def make(self, case, draw):
        made = super().make(case, draw)
        shape = (case.num_tokens, case.k)
        residual, weight = draw.normal(shape, case.dtype, std=3.0), draw.normal((case.k,), case.dtype, mean=1.0)
        X = draw.normal(shape, case.dtype)
        given = {"W": made["W"], "X": X, "residual": residual, "norm_weight": weight, "eps": 1e-5}
        return given | {"type": made["type"], "row": case.row}

    def reference(self, case, args):
        w = dequantized(args.W, case.type)
        total = (args.X.to(case.dtype).float() + args.residual.to(case.dtype).float()).to(case.dtype)
        mean = total.double().square().mean(-1, keepdim=True)
        y = (total.double() / (mean + args.eps).sqrt() * args.norm_weight.double()).to(case.dtype)
        y8 = quantized(y)
        bound = f32_bound(y8, w) + 2.0**24 * flip_bound(y, w, case.dtype)
        return {"result0": Expected(y8 @ w.double().T, bound), "result1": total.double()}


test_ggml = operator_tests(
    Dequantize(name="ggml_dequantize"),
    MulMat(name="ggml_mul_mat_vec_a8"),
    MulMatOfMany(name="ggml_mul_mat_a8"),
    SiluAndMulMatVec(name="silu_and_mul_ggml_mul_mat_vec_a8"),
    AddRmsnormMatVec(name="add_rmsnorm_ggml_mul_mat_vec_a8"),
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 3, 8])
def test_product_of_a_made_input_is_that_of_the_operators_in_turn(num_tokens, dtype, device):
    """But for inputs that are rounded to a neighbour: a few in ten thousand, for each of which a product moves by less
    than a hundredth of its own size."""
    import sgl_kernel

    row, k, type = 960, 1536, number("Q4_1")
    generator = torch.Generator().manual_seed(6)
    X = torch.randn(num_tokens, 2 * k, generator=generator).to(dtype).to(device)
    W = random_weight("Q4_1", row, k).to(device)
    made = sgl_kernel.silu_and_mul_ggml_mul_mat_vec_a8(W, X, type, row)
    in_turn = sgl_kernel.ggml_mul_mat_vec_a8(W, sgl_kernel.silu_and_mul(X), type, row)
    assert (made - in_turn).float().norm() <= 0.01 * in_turn.float().norm()

    x, residual = X.split(k, dim=-1)
    norm_weight = torch.rand(k, generator=generator).to(dtype).to(device)
    made, total = sgl_kernel.add_rmsnorm_ggml_mul_mat_vec_a8(W, x, residual, norm_weight, 1e-5, type, row)
    y, residual = x.contiguous(), residual.contiguous()
    sgl_kernel.fused_add_rmsnorm(y, residual, norm_weight, 1e-5)
    assert_same_bits("residual_sum", total, residual)
    in_turn = sgl_kernel.ggml_mul_mat_vec_a8(W, y, type, row)
    assert (made - in_turn).float().norm() <= 0.01 * in_turn.float().norm()


@pytest.mark.parametrize("name", ["ggml_mul_mat_vec_a8", "ggml_mul_mat_a8"])
def test_row_of_too_many_elements_is_refused(name):
    import sgl_kernel

    k = 2**30 + 32
    X, W = torch.empty(0, k), torch.empty(0, k // 32 * block("Q8_0")[1], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"at most 2\^30"):
        getattr(sgl_kernel, name)(W, X, number("Q8_0"), 0)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("type", TYPES)
def test_dequantize_takes_any_bytes(type, device, dtype):
    """Scales that are subnormal, zero, infinite or NaN included."""
    import sgl_kernel

    elements, size = block(type)
    W = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2001, size), dtype=np.uint8))
    expected = dequantized(W, type).to(dtype)
    result = sgl_kernel.ggml_dequantize(W.to(device), number(type), 2001, elements, dtype).cpu()
    nan = expected.isnan()
    assert nan.any()
    assert torch.equal(result.isnan(), nan)
    assert_same_bits("result", result.masked_fill(nan, 0), expected.masked_fill(nan, 0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("name", ["ggml_mul_mat_vec_a8", "ggml_mul_mat_a8"])
def test_product_has_the_same_bits_for_any_number_of_tokens(name, type, device):
    import sgl_kernel

    multiply = getattr(sgl_kernel, name)
    # So many rows that on a GPU some of these numbers take another kernel than others.
    W = random_weight(type, 91, 1280).to(device)
    X = torch.randn(150, 1280, generator=torch.Generator().manual_seed(2)).to(device)
    whole = multiply(W, X, number(type), 91)
    for num_tokens in (1, 2, 3, 4, 6, 7, 8, 16, 17, 22, 23, 31, 64, 128, 129, 144):
        assert_same_bits(f"{num_tokens} tokens", multiply(W, X[:num_tokens], number(type), 91), whole[:num_tokens])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("type", ["Q4_0", "Q4_1", "Q2_K", "Q6_K"])
def test_product_has_the_same_bits_in_any_tile(type, device):
    """So many rows that on a GPU many tokens take tiles of another shape than few."""
    import sgl_kernel

    row, k = 4360, 1536
    if multiplies_in_f16(device, 300, row, k):
        pytest.skip("the order of its sums depends on the number of tokens")
    W = random_weight(type, row, k).to(device)
    X = torch.randn(300, k, generator=torch.Generator().manual_seed(8)).to(device)
    whole = sgl_kernel.ggml_mul_mat_a8(W, X, number(type), row)
    for num_tokens in (5, 32, 64):
        few = sgl_kernel.ggml_mul_mat_a8(W, X[:num_tokens], number(type), row)
        assert_same_bits(f"{num_tokens} tokens", few, whole[:num_tokens])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("type", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
def test_weights_at_an_even_address(type, device):
    import sgl_kernel

    row, k = 8195, 768
    W = random_weight(type, row, k).to(device)
    # 45: multiplies_in_f16().
    X = torch.randn(45, k, generator=torch.Generator().manual_seed(7)).to(device)
    moved = torch.empty(W.numel() + 16, dtype=torch.uint8, device=device)
    for offset in (2, 14):
        there = moved[offset : offset + W.numel()].view(W.shape)
        there.copy_(W)
        for name, tokens in (("ggml_mul_mat_a8", 45), ("ggml_mul_mat_vec_a8", 1), ("ggml_mul_mat_vec_a8", 5)):
            multiply = getattr(sgl_kernel, name)
            expected = multiply(W, X[:tokens], number(type), row)
            assert_same_bits(name, multiply(there, X[:tokens], number(type), row), expected)
        expected = sgl_kernel.ggml_dequantize(W, number(type), row, k, F16)
        assert_same_bits("ggml_dequantize", sgl_kernel.ggml_dequantize(there, number(type), row, k, F16), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("type", TYPES)
def test_product_is_near_that_of_unquantized_tokens(type, device):
    """An element of X is off by at most amax / 254 of its group, and the roundings of q and of d."""
    import sgl_kernel

    W = random_weight(type, 64, 1024)
    X = torch.randn(20, 1024, generator=torch.Generator().manual_seed(3))
    w = dequantized(W, type).double()
    result = sgl_kernel.ggml_mul_mat_a8(W.to(device), X.to(device), number(type), 64).cpu().double()
    error_of_x = (
        groups_of(X.double().abs()).amax(-1, keepdim=True).expand(-1, -1, 32).flatten(-2) / 254 * (1 + 2.0**-15)
    )
    bound = error_of_x @ w.abs().T + 2.0**-24 * f32_bound(quantized(X), w)
    assert ((result - X.double() @ w.T).abs() <= bound).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
# 26300 rows: multiplies_in_f16().
@pytest.mark.parametrize("name, row", [("ggml_mul_mat_vec_a8", 9), ("ggml_mul_mat_a8", 9), ("ggml_mul_mat_a8", 26300)])
@pytest.mark.parametrize("type", ["Q4_1", "Q8_0", "Q6_K", "IQ1_M"])
def test_product_of_extreme_tokens(type, name, row, dtype, device):
    import sgl_kernel

    W = random_weight(type, row, 512)
    X = torch.randn(20, 512, generator=torch.Generator().manual_seed(4)).to(dtype)
    X[1] = 0
    X[2, 77] = float("nan")
    X[3, 400] = float("inf")
    X[4, 0] = float("-inf")
    X[5, 32:64] = torch.finfo(dtype).tiny * 2  # below 2^-100 in f32 and bf16: as good as 0
    X[6, 0:32] = torch.finfo(dtype).max
    X[6, 32:64] = -torch.finfo(dtype).max
    result = getattr(sgl_kernel, name)(W.to(device), X.to(device), number(type), row).cpu()
    finite = [0, 1, 5, *range(7, 20)]
    assert (result[1] == 0).all()
    assert result[2:5].isnan().all()
    # Each row of the batch is what it is alone, whatever its neighbours.
    clean = X.clone()
    clean[[2, 3, 4, 6]] = 1
    expected = getattr(sgl_kernel, name)(W.to(device), clean.to(device), number(type), row).cpu()
    assert_same_bits("finite tokens", result[finite], expected[finite])
    assert result[finite].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_tokens", [1, 40])
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), float("-inf")])
def test_product_with_a_scale_that_is_not_finite(scale, type, num_tokens, device):
    """Shows in that row of W, and in no other."""
    import sgl_kernel

    elements, size = block(type)
    W = random_weight(type, 12, 2 * elements)
    bad = W.clone()
    blocks = bad.numpy().reshape(12, 2, size)[7]
    put_scale(blocks[1:], type, np.array([scale], dtype=np.float16))
    X = torch.rand(num_tokens, 2 * elements, generator=torch.Generator().manual_seed(5)) + 0.1
    expected = sgl_kernel.ggml_mul_mat_a8(W.to(device), X.to(device), number(type), 12).cpu()
    result = sgl_kernel.ggml_mul_mat_a8(bad.to(device), X.to(device), number(type), 12).cpu()
    assert not result[:, 7].isfinite().any()
    expected[:, 7] = result[:, 7] = 0
    assert_same_bits("the other rows", result, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["ggml_mul_mat_vec_a8", "ggml_mul_mat_a8"])
def test_native_product_checks_result_and_workspace(name, device):
    from sgl_kernel.quantization import _native

    W = random_weight("Q4_1", 70, 576).to(device)
    X = torch.randn(5, 576, device=device)
    size = _native.ggml_workspace_size(5, 576, device == "cuda")
    result = torch.empty(5, 70, device=device)
    workspace = torch.empty(size + 64, dtype=torch.uint8, device=device)
    multiply = getattr(_native, name)
    wide = torch.full((5, 100), 7.0, device=device)
    multiply(wide[:, 10:80], workspace, W, X, number("Q4_1"), 70)
    multiply(result, workspace[:size], W, X, number("Q4_1"), 70)
    assert_same_bits("a result with strided rows", wide[:, 10:80].clone(), result)
    assert (wide[:, :10] == 7).all() and (wide[:, 80:] == 7).all()

    wrong = {
        "workspace": [workspace[: size - 1], workspace[1 : size + 1], workspace.view(torch.int32), W.view(-1)],
        "result": [torch.empty(5, 71, device=device), result.half(), result.T.contiguous().T, X[:, :70]],
    }
    for argument, values in wrong.items():
        for value in values:
            given = {"result": result, "workspace": workspace[:size]} | {argument: value}
            with pytest.raises(ValueError, match=f"^{name}: .*{argument}"):
                multiply(given["result"], given["workspace"], W, X, number("Q4_1"), 70)
