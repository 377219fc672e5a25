"""gptq_marlin_gemm, against products in float64 with weights that tests/gemm/packing.py packs."""

import itertools

import pytest
import torch

from tests.gemm.hard_data import activations, repeated
from tests.gemm.packing import (
    AWQ_ORDER,
    SCALES_OF_GROUPS,
    marlin_fp4_scales,
    marlin_permutation,
    marlin_scales,
    marlin_weight,
    marlin_zeros,
)
from tests.harness import (
    Bad,
    Draw,
    Expected,
    Operator,
    assert_same_bits,
    bad_shape,
    bad_value,
    case,
    checks_values,
    operator_tests,
)

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
FP8 = torch.float8_e4m3fn
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]

# Type → upstream's ScalarType.id, as scalar_type_test.py pins them.
TYPES = {
    "uint4": 1 << 50 | 4 << 8,
    "uint4b8": 1 << 50 | 8 << 17 | 4 << 8,
    "uint8": 1 << 50 | 8 << 8,
    "uint8b128": 1 << 50 | 128 << 17 | 8 << 8,
    "float8_e4m3fn": 2 << 50 | 1 << 49 | 1 << 16 | 3 << 8 | 4,
    "float4_e2m1f": 1 << 49 | 1 << 16 | 1 << 8 | 2,
}
FP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)


def bits_of(type):
    return 8 if "8" in type.split("b")[0].removeprefix("u") else 4


def values(numbers, type):
    """What the bits of a weight stand for, less zero points that are tensors."""
    if type == "float8_e4m3fn":
        return numbers.to(torch.uint8).view(FP8).double()
    if type == "float4_e2m1f":
        return FP4_VALUES[numbers & 7] * (1 - 2 * (numbers >> 3))
    bias = {"uint4b8": 8, "uint8b128": 128}.get(type, 0)
    return numbers.double() - bias


class MarlinGemm(Operator):
    """A case has m, n, k, type, dtype, group (-1: one for all); order "full" or "part" for act-order, float_zeros."""

    name = "gptq_marlin_gemm"
    accepts = {"global_scale_or_none.rank": "one element of any rank"}
    inout = ("a", "b_q_weight", "b_scales", "workspace")  # upstream's schema marks them, though they are only read
    cases = [
        case(m=5, n=128, k=256, type="uint4b8", dtype=F16, group=128),
        *(
            case(m=m, n=n, k=k, type=type, dtype=dtype, group=group)
            for type, dtype, group, m, n, k in [
                ("uint4b8", BF16, 128, 1, 64, 128),
                ("uint4b8", F16, -1, 3, 192, 272),
                ("uint4b8", BF16, 32, 17, 320, 544),
                ("uint4b8", F16, 64, 33, 128, 1024),
                ("uint4b8", BF16, 128, 100, 256, 4096),
                ("uint4b8", BF16, 128, 12, 192, 4608),
                ("uint4b8", BF16, 128, 6, 64, 36864),  # Hopper's ring of stages goes round
                ("uint4", F16, 64, 8, 64, 20480),
                ("uint4", F16, 128, 16, 128, 512),
                ("uint4", BF16, 64, 4, 192, 320),
                ("uint4", F16, -1, 2, 64, 144),
                ("uint8b128", F16, 128, 8, 128, 256),
                ("uint8b128", BF16, -1, 20, 192, 272),
                ("uint8b128", BF16, 32, 40, 64, 96),
                ("uint8", F16, 32, 6, 128, 160),
                ("uint8", BF16, 128, 18, 64, 1152),
                ("uint8", BF16, -1, 11, 128, 272),
                ("uint4", F16, 32, 9, 192, 160),
                ("uint8b128", F16, 64, 3, 64, 192),
                ("float8_e4m3fn", F16, -1, 7, 128, 256),
                ("float8_e4m3fn", BF16, 128, 16, 192, 384),
                ("float8_e4m3fn", F16, 32, 30, 320, 544),
                ("float8_e4m3fn", BF16, -1, 35, 64, 144),
                ("float4_e2m1f", F16, 16, 5, 128, 96),
                ("float4_e2m1f", BF16, 16, 24, 192, 512),
                ("float4_e2m1f", BF16, 16, 12, 320, 3104),
                # As long rows as models have.
                ("uint4", BF16, 128, 3, 64, 32768),
                ("float8_e4m3fn", BF16, 128, 2, 64, 32768),
                ("float4_e2m1f", BF16, 16, 5, 64, 32768),
                ("float4_e2m1f", BF16, 16, 70, 64, 32768),
                # Many tokens have a kernel of their own on Hopper.
                ("uint4b8", BF16, 128, 300, 192, 768),
                ("uint4b8", F16, -1, 129, 64, 640),
                ("uint4", F16, 32, 70, 320, 1024),
                ("uint4", BF16, -1, 260, 128, 192),
                ("uint8b128", BF16, 16, 65, 192, 320),
                ("uint8", F16, 64, 200, 128, 1536),
                ("float8_e4m3fn", F16, 64, 90, 192, 384),
                ("float8_e4m3fn", BF16, -1, 500, 128, 256),
                ("float4_e2m1f", F16, 16, 170, 64, 512),
                ("float4_e2m1f", BF16, 16, 66, 192, 128),
                # It has tiles of 192 columns, too.
                ("uint4", BF16, 64, 500, 6208, 512),
                ("float4_e2m1f", F16, 16, 500, 6208, 512),
            ]
        ),
        *(
            case(m=m, n=128, k=512, type=type, dtype=dtype, group=group, order=order)
            for type, dtype, group, order, m in [
                ("uint4b8", F16, 128, "full", 9),
                ("uint4b8", BF16, 64, "part", 3),
                ("uint8b128", F16, 32, "part", 18),
                ("uint8b128", BF16, -1, "full", 4),
                ("uint4b8", F16, 64, "full", 150),
            ]
        ),
        case(m=4, n=128, k=256, type="uint4", dtype=F16, group=64, float_zeros=True),
        case(m=20, n=64, k=128, type="uint8", dtype=F16, group=-1, float_zeros=True),
        # Groups of another size than checkpoints have.
        case(m=6, n=64, k=288, type="uint4b8", dtype=F16, group=48),
        case(m=21, n=128, k=224, type="uint8b128", dtype=BF16, group=16),
        *(
            case(m=m, n=64, k=k, type=type, dtype=dtype, group=128, data=data, scale=scale)
            for type, dtype, m, k, data, scale in [
                ("uint4b8", BF16, 3, 32768, "positive", 0.1),
                ("uint8", BF16, 18, 4096, "positive", 0.1),
                ("uint4", F16, 19, 1024, "outliers", 0.1),
                ("uint8b128", F16, 2, 512, "outliers", 0.1),
                ("uint4b8", F16, 9, 2048, "cancelling", 0.1),
                ("uint4b8", BF16, 6, 512, None, 1e-23),
                ("uint8b128", BF16, 20, 256, None, 1e-23),
                ("uint4b8", F16, 5, 256, None, 1e-6),  # subnormal scales
                ("uint4b8", F16, 5, 256, "tiny", 0.1),
                ("uint4b8", F16, 70, 256, "tiny", 0.1),
                ("uint8b128", F16, 4, 32768, "cancelling", 0.1),
            ]
        ),
    ]
    empty = [
        case(m=0, n=128, k=256, type="uint4b8", dtype=F16, group=128),
        case(m=3, n=0, k=256, type="uint8b128", dtype=BF16, group=128),
    ]
    rows = {"a": 0, "result": 0}
    strided = ("a",)
    bad = [
        bad_shape("a", (5, 240)),
        bad_shape("a", (4, 256)),
        bad_shape("b_q_weight", (15, 256)),
        bad_shape("b_q_weight", (16, 512)),
        bad_shape("b_scales", (2, 64)),
        bad_shape("b_scales", (3, 128)),
        bad_shape("b_scales", (0, 128)),
        bad_shape("b_scales", (32, 128)),  # groups of 8
        bad_value("c_or_none", torch.zeros(5, 64, dtype=F16), names="c_or_none|a"),
        bad_value("global_scale_or_none", torch.ones(1, dtype=F16)),
        bad_value("b_zeros_or_none", torch.zeros(2, 16, dtype=torch.int32)),
        bad_value("g_idx_or_none", torch.zeros(256, dtype=torch.int32), names="g_idx_or_none|perm_or_none|a"),
        bad_value("perm_or_none", torch.zeros(256, dtype=torch.int32), names="perm_or_none|a"),
        bad_value("b_q_type_id", 0),
        bad_value("b_q_type_id", TYPES["uint4"], names="b_zeros_or_none"),
        bad_value("b_q_type_id", TYPES["uint8b128"], names="b_q_weight"),
        bad_value("b_q_type_id", TYPES["float4_e2m1f"], names="b_scales"),
        bad_value("size_m", 6, names="a"),
        bad_value("size_m", -1),
        bad_value("size_n", 100),
        bad_value("size_n", 2**40),  # a result that must not be allocated
        bad_value("size_n", 64, names="b_q_weight"),
        bad_value("size_k", 100),
        bad_value("size_k", 128, names="a"),
    ]

    def make(self, case, draw):
        bits, groups = bits_of(case.type), 1 if case.group == -1 else case.k // case.group
        order, data = getattr(case, "order", None), getattr(case, "data", None)
        numbers = repeated(draw.integers(0, 2**bits, (case.k, case.n), torch.int64).cpu(), data)
        if case.type == "float8_e4m3fn":
            numbers[(numbers & 127) == 127] = 0  # NaN
        scale = getattr(case, "scale", 0.1)
        scales = repeated(draw.uniform((groups, case.n), F32, scale / 10, scale).cpu(), data)
        global_scale = None
        if case.type == "float8_e4m3fn":
            scales *= 2.0 ** (8 if case.dtype == F16 else 120)
        if case.type == "float4_e2m1f":
            packed_scales = marlin_fp4_scales((scales * 1000).to(FP8))
            global_scale = torch.tensor([0.001 * 2.0 ** (7 if case.dtype == F16 else 119)], dtype=case.dtype)
        else:
            packed_scales = marlin_scales(scales.to(case.dtype))
        zeros = None
        if getattr(case, "float_zeros", False):
            zeros = marlin_scales(draw.uniform((groups, case.n), F16, 0, 2**bits).cpu())
        elif case.type in ("uint4", "uint8"):
            zeros = marlin_zeros(draw.integers(0, 2**bits, (groups, case.n), torch.int64).cpu(), bits)
        g_idx = perm = None
        if order is not None:
            perm = draw.permutation(case.k)
            of_row = draw.integers(0, groups, (case.k,)).cpu().sort().values
            g_idx = draw.tensor(of_row if order == "part" else torch.arange(case.k) * groups // case.k, torch.int32)
        place = draw.device

        def placed(tensor):
            return None if tensor is None else tensor.to(place)

        return {
            "a": activations(draw, (case.m, case.k), data).to(case.dtype),
            "c_or_none": None,
            "b_q_weight": placed(marlin_weight(numbers, bits)),
            "b_scales": placed(packed_scales),
            "global_scale_or_none": placed(global_scale),
            "b_zeros_or_none": placed(zeros),
            "g_idx_or_none": g_idx,
            "perm_or_none": perm,
            "workspace": torch.zeros(264, dtype=torch.int32, device=place),
            "b_q_type_id": TYPES[case.type],
            "size_m": case.m,
            "size_n": case.n,
            "size_k": case.k,
            "is_k_full": order != "part",
            "use_atomic_add": False,
            "use_fp32_reduce": True,
            "is_zp_float": getattr(case, "float_zeros", False),
        }

    def reference(self, case, args):
        weight, offset = weight_of(case, args)
        a = args.a if args.perm_or_none is None else args.a[:, args.perm_or_none.long()]
        magnitude = a.abs() @ (weight.abs() + offset)
        unchanged = {name: getattr(args, name) for name in self.inout}
        return {"result": Expected(a @ weight, magnitude), **unchanged}


def weight_of(case, args):
    """The weight in float64, by taking the packed tensors apart; and by how much more than its own magnitude its parts
    weigh, in units of float32's roundings, where the kernels may round those to the narrow dtype."""
    bits, k, n = bits_of(case.type), case.k, case.n
    words = args.b_q_weight.to(torch.int64)
    identity = marlin_weight_places(k, n, bits)
    flat = (words[..., None] >> torch.arange(0, 32, bits) & (2**bits - 1)).flatten()
    numbers = torch.empty(k * n, dtype=torch.int64)
    numbers[identity] = flat
    weight = values(numbers.view(k, n), case.type)

    groups = args.b_scales.shape[0]
    part = getattr(case, "order", None) == "part"
    group = args.g_idx_or_none.long() if part else torch.arange(k) * groups // max(k, 1)
    columns = marlin_scales(torch.arange(n).expand(groups, n))[0]
    if case.type == "float4_e2m1f":
        raw = args.b_scales.to(FP8).view(torch.uint8).to(torch.int64)
        by_place = (raw.view(-1, 4)[:, [0, 2, 1, 3]].view(groups // 2, n // 8, 2, 8).transpose(1, 2)).reshape(groups, n)
        exponent, mantissa = by_place >> 3, (by_place & 7).double() / 8
        decoded = torch.where(exponent == 0, mantissa * 2.0**-14, (1 + mantissa) * 2.0 ** (exponent - 15).double())
        shift = 14 if case.dtype == F16 else 126
        by_place = decoded * (args.global_scale_or_none.double() * 2.0**-shift)
    else:
        by_place = args.b_scales.double()
        if case.type == "float8_e4m3fn":
            by_place = by_place * 2.0 ** -(8 if case.dtype == F16 else 120)
    scales = torch.empty_like(by_place)
    scales[:, columns] = by_place

    offset = torch.zeros_like(weight)
    if args.b_zeros_or_none is not None:
        if getattr(case, "float_zeros", False):
            zeros = torch.empty(groups, n, dtype=torch.float64)
            zeros[:, columns] = args.b_zeros_or_none.double()
            # The difference is rounded to float16: 2^-11 is 2^13 / 32 times 32 roundings of 2^-24.
            offset = (weight - zeros[group]).abs() * (2**13 / 32)
        else:
            zeros = unpacked_zeros(args.b_zeros_or_none.to(torch.int64), bits).double()
        weight = weight - zeros[group]
    scaled = weight * scales[group]
    offset = offset * scales[group]
    # Rounded to the narrow dtype: irregular groups twice, several groups once with many tokens.
    roundings = 2 if part else 1 if groups > 1 and case.m > 32 else 0
    if roundings > 0:
        offset = scaled.abs() * (2**16 if case.dtype == BF16 else 2**13) / 32 * roundings
    return scaled, offset


def marlin_weight_places(k, n, bits):
    """For each number in the order of the packed words, where in [K, N] it is."""
    index = torch.arange(k * n).view(k // 16, 16, n // 16, 16).transpose(1, 2).reshape(k // 16, n * 16)
    return index.unflatten(-1, (-1, 1024))[..., marlin_permutation(bits)].flatten()


def unpacked_zeros(words, bits):
    zeros = words[..., None] >> torch.arange(0, 32, bits) & (2**bits - 1)
    zeros = zeros[..., torch.tensor(AWQ_ORDER[bits]).argsort()].flatten(-2)
    return zeros.unflatten(-1, (-1, 64))[..., SCALES_OF_GROUPS.argsort()].flatten(-2)


def act_order(args):
    args["perm_or_none"] = torch.arange(256, dtype=torch.int32, device=args.a.device)
    args["g_idx_or_none"] = args["perm_or_none"] // 64


def with_arguments(bad, **fields):
    """A case as the typical one, and what is wrong then: of arguments that the one above goes without."""
    row = case(**{"m": 5, "n": 128, "k": 256, "dtype": F16, "group": 64, **fields})
    return MarlinGemm(cases=[row], empty=[], bad=bad)


test_marlin_gemm = operator_tests(
    MarlinGemm(),
    with_arguments(
        [
            bad_value("b_zeros_or_none", None),
            bad_shape("b_zeros_or_none", (4, 15)),
            bad_shape("b_zeros_or_none", (3, 16)),
            bad_value("is_zp_float", True, names="b_zeros_or_none"),
            Bad("b_zeros_or_none", "with act-order", act_order),
        ],
        type="uint4",
    ),
    with_arguments(
        [bad_shape("b_zeros_or_none", (4, 64)), bad_value("is_zp_float", False, names="b_zeros_or_none")],
        type="uint8",
        float_zeros=True,
    ),
    with_arguments(
        [
            bad_shape("g_idx_or_none", (255,)),
            bad_shape("perm_or_none", (255,)),
            bad_value("perm_or_none", None, names="g_idx_or_none|perm_or_none"),
            bad_value("g_idx_or_none", None, names="g_idx_or_none|perm_or_none"),
        ],
        type="uint4b8",
        order="part",
    ),
    with_arguments(
        [
            bad_value("global_scale_or_none", None),
            bad_shape("global_scale_or_none", (2,)),
            bad_shape("b_scales", (8, 128)),
        ],
        type="float4_e2m1f",
        group=16,
    ),
)


@pytest.mark.parametrize("device", DEVICES)
def test_refuses_a_result_in_the_memory_of_zero_points(device):
    row = case(m=4, n=128, k=256, type="uint4", dtype=F16, group=64, float_zeros=True)
    args = MarlinGemm().make(row, Draw(device, 0))
    args["c_or_none"] = args["b_zeros_or_none"]  # both [4, 128] in float16
    with pytest.raises(ValueError, match="gptq_marlin_gemm: c_or_none"):
        torch.ops.sgl_kernel.gptq_marlin_gemm(*args.values())


@pytest.mark.parametrize("device", DEVICES)
def test_destination(device):
    """As callers write it: a ScalarType, and where the result goes."""
    import sgl_kernel
    from sgl_kernel.scalar_type import scalar_types

    args = list(MarlinGemm().make(MarlinGemm.cases[0], Draw(device, 0)).values())
    expected = sgl_kernel.gptq_marlin_gemm(*args)
    args[1], args[9] = torch.full_like(expected, float("nan")), scalar_types.uint4b8
    result = sgl_kernel.gptq_marlin_gemm(*args)
    assert result is args[1]
    assert_same_bits("c", result, expected)
    args[1].fill_(float("nan"))
    torch._dynamo.reset()
    compiled = torch.compile(lambda *args: sgl_kernel.gptq_marlin_gemm(*args), fullgraph=True, backend="aot_eager")
    assert_same_bits("the compiled call's", compiled(*args), expected)
    assert_same_bits("c of the compiled call", args[1], expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m, k", [(3, 256), (3, 4096), (150, 1024)])
def test_flags_of_how_partial_sums_are_added_change_no_bit(m, k, device):
    """Those are never added atomically: each flag gives the same bits, and so does each run."""
    import sgl_kernel

    args = MarlinGemm().make(case(m=m, n=64, k=k, type="uint4b8", dtype=BF16, group=128), Draw(device, 0))
    expected = sgl_kernel.gptq_marlin_gemm(*[*args.values()][:14])
    for args["use_atomic_add"], args["use_fp32_reduce"] in [(True, True), (True, False), (False, False)] * 3:
        assert_same_bits("result", sgl_kernel.gptq_marlin_gemm(*args.values()), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("groups", [0, 3])
def test_groups_that_do_not_divide(groups, device):
    """Scales and zero points agree with each other, but not with K."""
    import sgl_kernel

    args = MarlinGemm().make(case(m=2, n=128, k=512, type="uint4", dtype=F16, group=128), Draw(device, 0))
    args["b_scales"] = args["b_scales"].new_zeros(groups, 128)
    args["b_zeros_or_none"] = args["b_zeros_or_none"].new_zeros(groups, 16)
    with pytest.raises(ValueError, match=r"^gptq_marlin_gemm: b_(scales|zeros_or_none)"):
        sgl_kernel.gptq_marlin_gemm(*args.values())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("argument", ["perm_or_none", "g_idx_or_none"])
def test_index_out_of_range(device, argument):
    import sgl_kernel

    if not checks_values(device):
        pytest.skip("values on a GPU are checked under SGL_KERNEL_CHECK=1")
    row = case(m=3, n=64, k=128, type="uint4b8", dtype=F16, group=64, order="part")
    args = MarlinGemm().make(row, Draw(device, 0))
    args[argument][7] = 128
    with pytest.raises(ValueError, match=rf"^gptq_marlin_gemm: {argument}\[7\] is 128"):
        sgl_kernel.gptq_marlin_gemm(*args.values())


@pytest.mark.cuda
@pytest.mark.parametrize("n, k", [*itertools.product([64, 576, 4096], [128, 1536, 4096]), (24640, 384)])
@pytest.mark.parametrize("m", [1, 16, 17, 32, 100, 700])
@pytest.mark.parametrize("type", list(TYPES))
def test_tiles_of_all_sizes(type, m, n, k):
    """On a GPU as on the CPU, but for the order of additions."""
    import sgl_kernel

    row = case(m=m, n=n, k=k, type=type, dtype=BF16, group=16 if type == "float4_e2m1f" else 128)
    on_cpu = sgl_kernel.gptq_marlin_gemm(*MarlinGemm().make(row, Draw("cpu", 0)).values()).double()
    args = MarlinGemm().make(row, Draw("cuda", 0))
    result = sgl_kernel.gptq_marlin_gemm(*args.values())
    # With many tokens the weight may be rounded to bfloat16, by up to 2^-8 of itself; the errors largely cancel.
    least = (2.0**-8 if m > 32 else 1e-4) * on_cpu.abs().max()
    assert ((result.cpu().double() - on_cpu).abs() <= 2.0**-6 * on_cpu.abs() + least).all()
    assert_same_bits("again", sgl_kernel.gptq_marlin_gemm(*args.values()), result)
