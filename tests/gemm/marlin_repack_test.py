"""gptq_marlin_repack and awq_marlin_repack, bit for bit against the packing of tests/gemm/packing.py."""

import pytest
import torch

from tests.gemm.packing import AWQ_ORDER, marlin_weight, pack_columns, pack_rows
from tests.harness import Operator, assert_same_bits, bad_shape, bad_value, case, checks_values, operator_tests

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]

SHAPES = [(32, 128), (16, 64), (128, 192), (272, 320)]


def drawn(draw, case):
    return draw.integers(0, 2**case.bits, (case.k, case.n), torch.int64).cpu()


class Repack(Operator):
    empty = [case(k=0, n=64, bits=4), case(k=32, n=0, bits=8)]
    bad = [
        bad_value("size_k", 24),
        bad_value("size_k", -16),
        bad_value("size_k", 48, names="b_q_weight"),
        bad_value("size_n", 96),
        bad_value("size_n", -64),
        bad_value("size_n", 192, names="b_q_weight"),
        bad_value("size_n", 2**40),  # a result that must not be allocated
        bad_value("num_bits", 3),
        bad_value("num_bits", 0),
        bad_shape("b_q_weight", (5, 128)),
    ]


class GptqRepack(Repack):
    name = "gptq_marlin_repack"
    inout = ("b_q_weight", "perm")  # upstream's schema marks them, though they are only read
    cases = [case(k=k, n=n, bits=bits, permuted=p) for k, n in SHAPES for bits in (4, 8) for p in (False, True)]
    empty = [case(**vars(row), permuted=False) for row in Repack.empty]
    bad = [*Repack.bad, bad_shape("perm", (31,))]
    any_value = {"perm": "a test of its own"}

    def make(self, case, draw):
        return {
            "b_q_weight": draw.tensor(pack_rows(drawn(draw, case), case.bits), torch.int32),
            "perm": draw.permutation(case.k) if case.permuted else draw.empty((0,), torch.int32),
            "size_k": case.k,
            "size_n": case.n,
            "num_bits": case.bits,
        }

    def reference(self, case, args):
        per_word = 32 // case.bits
        words = args.b_q_weight.to(torch.int64)
        numbers = (words[:, None] >> torch.arange(0, 32, case.bits)[:, None] & (2**case.bits - 1)).flatten(0, 1)
        assert numbers.shape == (case.k // per_word * per_word, case.n)
        if case.permuted:
            numbers = numbers[args.perm.long()]
        return {
            "result": marlin_weight(numbers, case.bits),
            "b_q_weight": args.b_q_weight,
            "perm": args.perm,
        }


class AwqRepack(Repack):
    name = "awq_marlin_repack"
    inout = ("b_q_weight",)
    cases = [case(k=k, n=n, bits=bits) for k, n in SHAPES for bits in (4, 8)]

    def make(self, case, draw):
        packed = pack_columns(drawn(draw, case), case.bits, AWQ_ORDER[case.bits])
        return {
            "b_q_weight": draw.tensor(packed, torch.int32),
            "size_k": case.k,
            "size_n": case.n,
            "num_bits": case.bits,
        }

    def reference(self, case, args):
        numbers = args.b_q_weight.to(torch.int64)[..., None] >> torch.arange(0, 32, case.bits) & (2**case.bits - 1)
        numbers = numbers[..., torch.tensor(AWQ_ORDER[case.bits]).argsort()].flatten(-2)
        return {"result": marlin_weight(numbers, case.bits), "b_q_weight": args.b_q_weight}


test_marlin_repack = operator_tests(
    GptqRepack(),
    # An order of rows as the typical case.
    GptqRepack(cases=[case(k=32, n=128, bits=4, permuted=True)], empty=[]),
    AwqRepack(),
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [4, 8])
def test_experts(bits, device):
    import sgl_kernel

    weight = torch.randint(-(2**31), 2**31, (3, 32, 128 * bits // 32), dtype=torch.int32).to(device)
    perm = torch.empty(3, 0, dtype=torch.int32, device=device)
    result = sgl_kernel.awq_marlin_moe_repack(weight, perm, 32, 128, bits)
    for i in range(3):
        assert_same_bits("an expert", result[i], sgl_kernel.awq_marlin_repack(weight[i], 32, 128, bits))
    assert sgl_kernel.awq_marlin_moe_repack(weight[:0], perm, 32, 128, bits).shape == (0, 2, 64 * bits)
    with pytest.raises(ValueError, match=r"^awq_marlin_moe_repack: b_q_weight"):
        sgl_kernel.awq_marlin_moe_repack(weight[0], perm, 32, 128, bits)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("index", [-1, 32])
def test_perm_out_of_range(device, index):
    import sgl_kernel

    if not checks_values(device):
        pytest.skip("values on a GPU are checked under SGL_KERNEL_CHECK=1")
    perm = torch.arange(32, dtype=torch.int32, device=device)
    perm[5] = index
    with pytest.raises(ValueError, match=r"^gptq_marlin_repack: perm\[5\] is"):
        sgl_kernel.gptq_marlin_repack(torch.zeros(4, 64, dtype=torch.int32, device=device), perm, 32, 64, 4)
