"""gptq_gemm and gptq_shuffle, against products in float64 and the packing of tests/gemm/packing.py."""

import pytest
import torch

from tests.gemm.hard_data import activations, repeated
from tests.gemm.packing import pack_columns, pack_rows, shuffled
from tests.harness import Bad, Expected, Operator, bad_shape, bad_value, case, checks_values, operator_tests

F16 = torch.float16
BITS = (4, 2, 3, 8)
STEPS = {2: 64, 3: 128, 4: 32, 8: 32}  # rows that the GPU's kernel takes at a time


def unpacked_rows(words, bits):
    """The numbers [K, N] of a packed weight: bits from the lowest on, word after word."""
    string = (words.to(torch.int64)[:, None] >> torch.arange(32)[:, None] & 1).flatten(0, 1)
    return (string.unflatten(0, (-1, bits)) << torch.arange(bits)[:, None]).sum(1)


class GptqShuffle(Operator):
    name = "gptq_shuffle"
    inout = ("q_weight",)
    cases = [case(k=k, n=n, bits=bits, permuted=p) for k, n in [(64, 32), (32, 7)] for bits in BITS for p in (1, 0)]
    empty = [case(k=0, n=32, bits=4, permuted=0), case(k=32, n=0, bits=3, permuted=0)]
    bad = [bad_shape("q_weight", (7, 32)), bad_shape("q_perm", (63,)), bad_value("bit", 5), bad_value("bit", 0)]

    def make(self, case, draw):
        numbers = draw.integers(0, 2**case.bits, (case.k, case.n), torch.int64).cpu()
        packed = pack_rows(numbers, case.bits) if numbers.numel() else torch.empty(case.k // 32 * case.bits, case.n)
        return {
            "q_weight": draw.tensor(packed, torch.int32),
            "q_perm": draw.permutation(case.k) if case.permuted else draw.empty((0,), torch.int32),
            "bit": case.bits,
        }

    def reference(self, case, args):
        if args.q_weight.numel() == 0:
            return {"q_weight": args.q_weight}
        numbers = unpacked_rows(args.q_weight, case.bits)
        if case.permuted:
            numbers = numbers[args.q_perm.long()]
        return {"q_weight": shuffled(numbers, case.bits)}


def bad_groups(groups) -> Bad:
    """A number of groups that K = 256 cannot have, zero points and scales agreeing."""

    def mutate(args):
        args["b_gptq_qzeros"] = args["b_gptq_qzeros"].new_zeros(groups, 12)
        args["b_gptq_scales"] = args["b_gptq_scales"].new_zeros(groups, 96)

    return Bad("b_gptq_scales", f"{groups} groups", mutate, names="b_gptq_qzeros|b_gptq_scales")


class GptqGemm(Operator):
    """index: whether b_g_idx is given."""

    name = "gptq_gemm"
    cases = [
        case(m=5, n=96, k=256, bits=4, group=128, shuffle=True, index=False),
        *(
            case(m=m, n=n, k=k, bits=4, group=group, shuffle=True, index=False)
            for m, n, k, group in [
                (12, 160, 4608, 128),
                (70, 96, 512, 128),  # more rows than a block of the GPU's takes
                (16, 96, 24576, 256),  # more of K than its shared memory holds the rows of
                (2, 2112, 1664, 64),
                (33, 224, 1152, 384),
            ]
        ),
        *(
            case(m=m, n=n, k=k, bits=bits, group=group, shuffle=shuffle, index=index)
            for bits in BITS
            for m, n, k, group, shuffle, index in [
                (1, 32, 64, 64, True, True),
                (16, 160, 512, 128, True, False),
                (17, 64, 96, 32, True, True),
                (7, 64, 96, 32, True, False),
                (3, 128, 352, 352, False, False),
                (40, 96, 256, 64, False, True),
            ]
        ),
        *(
            case(m=m, n=32, k=k, bits=bits, group=128, shuffle=True, index=False, data=data, scale=scale)
            for m, k, bits, data, scale in [
                (3, 32768, 4, "positive", 0.001),
                (20, 1024, 4, "outliers", 0.1),
                (5, 1024, 4, "outliers", 0.1),
                (8, 2048, 4, "cancelling", 0.1),
                (2, 512, 8, "outliers", 0.1),
                (9, 2048, 3, "cancelling", 0.1),
                (4, 256, 2, None, 1e-6),  # subnormal scales
            ]
        ),
        *(
            case(m=4, n=32, k=256, bits=4, group=64, shuffle=shuffle, index=False, data="tiny")
            for shuffle in (False, True)
        ),
    ]
    empty = [
        case(m=0, n=32, k=64, bits=4, group=64, shuffle=True, index=False),
        case(m=2, n=0, k=64, bits=3, group=64, shuffle=False, index=False),
    ]
    rows = {"a": 0, "result": 0}
    bad = [
        bad_shape("a", (5, 255)),
        bad_shape("b_q_weight", (33, 96)),
        bad_shape("b_q_weight", (32, 90)),
        bad_shape("b_gptq_qzeros", (3, 12)),
        bad_shape("b_gptq_scales", (2, 95)),
        bad_shape("b_g_idx", (255,)),
        bad_value("bit", 5),
        bad_value("bit", 8, names="a"),
        *(bad_groups(groups) for groups in (0, 3, 512)),
    ]

    def make(self, case, draw):
        groups = case.k // case.group
        data, scale = getattr(case, "data", None), getattr(case, "scale", 0.1)
        numbers = repeated(draw.integers(0, 2**case.bits, (case.k, case.n), torch.int64).cpu(), data)
        zeros = repeated(draw.integers(0, 2**case.bits, (groups, case.n), torch.int64).cpu(), data)
        if not case.index:
            index = draw.empty((0,), torch.int32)
        elif case.shuffle:
            index = draw.permutation(case.k)
        else:
            index = draw.integers(0, groups, (case.k,))
        pack = shuffled if case.shuffle else pack_rows
        weight = pack(numbers, case.bits) if case.n else torch.empty(case.k // 32 * case.bits, 0)
        packed_zeros = pack_columns(zeros, case.bits) if case.n else torch.empty(groups, 0)
        return {
            "a": activations(draw, (case.m, case.k), data).to(F16),
            "b_q_weight": draw.tensor(weight, torch.int32),
            "b_gptq_qzeros": draw.tensor(packed_zeros, torch.int32),
            "b_gptq_scales": repeated(draw.uniform((groups, case.n), F16, scale / 10, scale), data),
            "b_g_idx": index,
            "use_shuffle": case.shuffle,
            "bit": case.bits,
        }

    def reference(self, case, args):
        if case.n == 0:
            return {"result": args.a.new_empty(case.m, 0)}
        index = args.b_g_idx.long()
        numbers = unpacked_rows(unshuffled(args.b_q_weight, case.bits) if case.shuffle else args.b_q_weight, case.bits)
        zeros = unpacked_rows(args.b_gptq_qzeros.t(), case.bits).t()
        group = index if case.index and not case.shuffle else torch.arange(case.k) // case.group
        a = args.a[:, index] if case.index and case.shuffle else args.a
        weight = (numbers - zeros[group] - 1).double() * args.b_gptq_scales[group]
        # On a GPU the weight is rounded to float16 where a step of the kernel has several groups.
        rounded = (case.index and not case.shuffle) or case.group % STEPS[case.bits] != 0
        magnitude = a.abs() @ weight.abs() * (1 + rounded * 2**13 / 32)
        return {"result": Expected(a @ weight, magnitude)}


def unshuffled(words, bits):
    """The words of a checkpoint whose shuffled words these are."""
    k = words.shape[0] // bits * 32
    # Which number of a unit is where: a unit of numbers that tell their places, bit by bit.
    numbers = torch.zeros(k, words.shape[1], dtype=torch.int64)
    flat = words.to(torch.int64)
    for bit in range(bits):
        for i in range(32):
            one = torch.zeros(32, 1, dtype=torch.int64)
            one[i] = 1 << bit
            packed = shuffled(one, bits).to(torch.int64) & 0xFFFFFFFF
            word = int(packed.nonzero()[0, 0])
            shift = int(packed[word, 0]).bit_length() - 1
            numbers[i::32] |= (flat[word::bits] >> shift & 1) << bit
    return pack_rows(numbers, bits)


def with_index(shuffle, bits):
    """A case as the typical one that has an index."""
    row = case(m=5, n=96, k=256, bits=bits, group=64, shuffle=shuffle, index=True)
    return GptqGemm(cases=[row], empty=[], bad=[bad_shape("b_g_idx", (255,))])


test_gptq_gemm = operator_tests(GptqShuffle(), GptqGemm(), with_index(True, bits=3), with_index(False, bits=4))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("index", [-1, 64])
def test_index_out_of_range(device, index):
    import sgl_kernel

    if not checks_values(device):
        pytest.skip("values on a GPU are checked under SGL_KERNEL_CHECK=1")
    order = torch.arange(64, dtype=torch.int32, device=device)
    order[9] = index
    weight, zeros = (torch.zeros(shape, dtype=torch.int32, device=device) for shape in ((8, 32), (1, 4)))
    with pytest.raises(ValueError, match=r"^gptq_shuffle: q_perm\[9\] is"):
        sgl_kernel.gptq_shuffle(weight, order, 4)
    a, scales = (torch.ones(shape, dtype=F16, device=device) for shape in ((2, 64), (1, 32)))
    with pytest.raises(ValueError, match=r"^gptq_gemm: b_g_idx\[9\] is"):
        sgl_kernel.gptq_gemm(a, weight, zeros, scales, order, True, 4)
    with pytest.raises(ValueError, match=r"^gptq_gemm: b_g_idx\[0*"):
        sgl_kernel.gptq_gemm(a, weight, zeros, scales, order, False, 4)
