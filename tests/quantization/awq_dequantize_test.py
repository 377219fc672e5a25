"""awq_dequantize, against numbers that are packed here in the order that AutoAWQ's checkpoints have."""

import torch

from tests.harness import Bad, Operator, assert_same_bits, bad_shape, case, operator_tests

F16, BF16 = torch.float16, torch.bfloat16

# AutoAWQ packs element ORDER[i] of eight at bit 4 · i.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def packed(numbers: torch.Tensor) -> torch.Tensor:
    """0 … 15 [rows, n] → int32 [rows, n / 8]."""
    eights = numbers.to(torch.int64).unflatten(-1, (-1, 8))[..., ORDER]
    words = (eights << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpacked(words: torch.Tensor) -> torch.Tensor:
    nibbles = words[..., None] >> torch.arange(0, 32, 4) & 15
    return nibbles[..., torch.tensor(ORDER).argsort()].flatten(-2)


def three_groups(args):
    """Of 256 rows, scales and zero points agreeing."""
    args["scales"], args["qzeros"] = args["scales"].new_zeros(3, 512), args["qzeros"].new_zeros(3, 64)


class AwqDequantize(Operator):
    name = "awq_dequantize"
    cases = [
        case(dtype=F16, rows=256, n=512, group=128),
        case(dtype=BF16, rows=256, n=64, group=64),
        case(dtype=F16, rows=96, n=8, group=96),
        case(dtype=BF16, rows=35, n=1000, group=5),
        case(dtype=F16, rows=7, n=264, group=1),
        case(dtype=F16, rows=4096, n=9216, group=128),
        case(dtype=F16, rows=64, n=64, group=32, std=1e-6),  # subnormal
        case(dtype=BF16, rows=64, n=64, group=32, std=1e-23),
    ]
    empty = [case(dtype=F16, rows=0, n=64, group=1), case(dtype=BF16, rows=64, n=0, group=32)]
    bad = [
        Bad("scales", "3 groups", three_groups, names="scales|qzeros|qweight"),
        bad_shape("scales", (3, 512)),
        bad_shape("scales", (2, 504)),
        bad_shape("qzeros", (2, 65)),
    ]

    def make(self, case, draw):
        groups = case.rows // case.group
        return {
            "qweight": draw.tensor(packed(draw.integers(0, 16, (case.rows, case.n)).cpu()), torch.int32),
            "scales": draw.normal((groups, case.n), case.dtype, std=getattr(case, "std", 0.02)),
            "qzeros": draw.tensor(packed(draw.integers(0, 16, (groups, case.n)).cpu()), torch.int32),
        }

    def compare(self, case, args, outputs):
        def spread(rows):
            return rows.repeat_interleave(case.group, 0)

        difference = unpacked(args.qweight) - spread(unpacked(args.qzeros))
        expected = (difference.double() * spread(args.scales)).to(case.dtype)
        assert_same_bits("result", outputs["result"] + 0.0, expected + 0.0)  # 0 may have either sign


test_awq_dequantize = operator_tests(AwqDequantize())


def test_order_of_a_word():
    """Elements 0 … 7 lie at bits 0, 16, 4, 20, 8, 24, 12, 28."""
    import sgl_kernel

    word = sum(i << bit for i, bit in enumerate((0, 16, 4, 20, 8, 24, 12, 28)))
    result = sgl_kernel.awq_dequantize(
        torch.tensor([[word]], dtype=torch.int32), torch.ones(1, 8, dtype=F16), torch.zeros(1, 1, dtype=torch.int32)
    )
    assert result.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
