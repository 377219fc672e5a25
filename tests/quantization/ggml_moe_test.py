"""ggml_moe_a8 and ggml_moe_a8_vec, against the gguf package; ggml_moe_get_block_size."""

import pytest
import torch

from tests.harness import Expected, Operator, assert_same_bits, bad_shape, bad_value, case, operator_tests
from tests.quantization.ggml_weights import TYPES, dequantized, f32_bound, number, quantized, random_weight

F32, F16, BF16, I32 = torch.float32, torch.float16, torch.bfloat16, torch.int32
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
BLOCK = 4


def sorted_by_expert(topk_ids, experts_there):
    """What moe_align_block_size makes of [tokens, top_k]: pairs by expert, filled up to blocks with a number that is no
    pair; the expert of each block; and how many pairs there are then. Behind that, up to a length that does not depend
    on the choices, is what nobody may read."""
    choices = topk_ids.flatten()
    most = choices.numel() + (experts_there + 1) * (BLOCK - 1)
    pairs, experts = [], []
    for expert in choices.unique().tolist():
        of_expert = (choices == expert).nonzero().flatten().tolist()
        of_expert += [choices.numel()] * (-len(of_expert) % BLOCK)
        pairs += of_expert
        experts += [expert] * (len(of_expert) // BLOCK)
    lists = ([*pairs, *[0] * (most - len(pairs))], [*experts, *[10**6] * (most // BLOCK + 1 - len(experts))])
    return [torch.tensor(values, dtype=I32) for values in (*lists, [len(pairs)])]


class Moe(Operator):
    """experts: that the weight has; choices run to one more, which it does not have."""

    cases = [case(type="Q4_1", dtype=F16, tokens=5, top_k=3, experts=4, row=70, k=576)]
    cases += [
        case(type=t, dtype=d, tokens=n, top_k=top_k, experts=e, row=r, k=k)
        for t in TYPES
        for n, top_k, e, r, k, d in [(1, 2, 6, 33, 768, F32), (9, 3, 3, 17, 1280, BF16)]
    ]
    # One expert that many tokens share, a strip of rows and less, the second product of a layer.
    cases += [
        case(type=t, dtype=F32, tokens=n, top_k=top_k, experts=e, row=r, k=k)
        for t in ("Q4_0", "Q8_0", "Q6_K")
        for n, top_k, e, r, k in [(70, 1, 1, 9, 256), (23, 2, 40, 1, 512), (40, 1, 8, 200, 1536)]
    ]
    empty = [
        case(type="Q4_1", dtype=F16, tokens=0, top_k=3, experts=4, row=70, k=576),
        case(type="Q4_K", dtype=F32, tokens=3, top_k=2, experts=2, row=0, k=256),
        case(type="Q4_K", dtype=F32, tokens=3, top_k=2, experts=2, row=5, k=0),
        case(type="Q8_0", dtype=F32, tokens=3, top_k=2, experts=0, row=5, k=64),
    ]
    strided = misaligned = ("X",)
    bad = [
        bad_value("type", 4),
        bad_value("type", -1),
        bad_value("row", 71, names="W"),
        bad_value("row", 2**62),  # not allocated before it is refused
        bad_value("row", -1),
        bad_value("top_k", 0),
        bad_value("top_k", 2**62),
        bad_value("tokens", 6, names="X|tokens"),
        bad_value("tokens", 4, names="X|tokens"),
        bad_value("tokens", -1),
        bad_shape("X", (5, 575)),
        bad_shape("X", (5, 608), names="W"),
        bad_shape("W", (4, 69, 360)),
        bad_shape("W", (4, 70, 361)),
    ]
    f32_roundings = 1  # the magnitude holds their number

    def tensors(self, case, draw):
        """X, W, and which expert each pair has."""
        rows = random_weight(case.type, case.experts * case.row, case.k)
        W = draw.tensor(rows.view(case.experts, case.row, rows.shape[1]), torch.uint8)
        X = draw.normal((case.tokens, case.k), case.dtype)
        return X, W, draw.integers(0, case.experts + 1, (case.tokens, case.top_k)).cpu()

    def reference(self, case, args):
        return {"result": self.product(case, args, args.topk_ids)}

    def product(self, case, args, choices):
        x8 = quantized(args.X)
        value, bound = (torch.zeros(case.tokens * case.top_k, case.row, dtype=torch.float64) for _ in range(2))
        for pair, expert in enumerate(choices.flatten().tolist()):
            if 0 <= expert < case.experts:
                w, x = dequantized(args.W[expert], case.type), x8[pair // case.top_k, None]
                value[pair], bound[pair] = (x @ w.double().T)[0], f32_bound(x, w)[0]
        return Expected(value, bound)


class MoeVec(Moe):
    name = "ggml_moe_a8_vec"
    rows = {"X": 0}
    bad = [*Moe.bad, bad_value("top_k", 2, names="topk_ids"), bad_shape("topk_ids", (5, 2))]
    accepts = {"topk_ids.rank": "the number of its elements counts"}

    def make(self, case, draw):
        X, W, choices = self.tensors(case, draw)
        numbers = {"type": number(case.type), "row": case.row, "tokens": case.tokens}
        return {"X": X, "W": W, "topk_ids": draw.tensor(choices, I32), "top_k": case.top_k, **numbers}


class MoeSorted(Moe):
    name = "ggml_moe_a8"
    bad = [
        *Moe.bad,
        bad_shape("sorted_token_ids", (14,)),
        bad_shape("expert_ids", (1,)),
        bad_shape("num_tokens_post_padded", (2,)),
        bad_shape("num_tokens_post_padded", (0,)),
    ]
    accepts = {"num_tokens_post_padded.rank": "one element of any rank"}

    def make(self, case, draw):
        X, W, choices = self.tensors(case, draw)
        names = ("sorted_token_ids", "expert_ids", "num_tokens_post_padded")
        lists = {
            name: draw.tensor(ids, I32)
            for name, ids in zip(names, sorted_by_expert(choices, case.experts), strict=True)
        }
        numbers = {"type": number(case.type), "row": case.row, "top_k": case.top_k, "tokens": case.tokens}
        return {"X": X, "W": W, **lists, **numbers}

    def reference(self, case, args):
        choices = torch.empty(case.tokens * case.top_k, dtype=torch.int64)
        for i, pair in enumerate(args.sorted_token_ids[: int(args.num_tokens_post_padded)].tolist()):
            if pair < len(choices):
                choices[pair] = args.expert_ids[i // BLOCK]
        return {"result": self.product(case, args, choices)}


test_ggml_moe = operator_tests(MoeSorted(), MoeVec())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("type", "tokens", "experts"), [("Q4_0", 13, 6), ("Q6_K", 70, 8), ("IQ2_XS", 150, 5)])
def test_a_pair_has_the_bits_that_it_has_alone(type, tokens, experts, device):
    import sgl_kernel

    top_k, row, k = 4, 100, 2304
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(tokens, k, generator=generator).to(BF16).to(device)
    W = random_weight(type, experts * row, k).view(experts, row, -1).to(device)
    topk_ids = torch.stack([torch.randperm(experts, generator=generator)[:top_k] for _ in range(tokens)]).to(I32)
    numbers = (number(type), row)

    def products(X, ids):
        lists = [t.to(device) for t in sorted_by_expert(ids, experts)]
        yield sgl_kernel.ggml_moe_a8(X, W, *lists, *numbers, ids.shape[1], len(X))
        yield sgl_kernel.ggml_moe_a8_vec(X, W, ids.to(device), ids.shape[1], *numbers, len(X))

    together = list(products(X, topk_ids))
    for t, choice in ((0, 1), (tokens - 1, 3)):
        for result, one in zip(together, products(X[t : t + 1], topk_ids[t : t + 1, choice : choice + 1]), strict=True):
            assert_same_bits("a pair alone", one[0], result[t * top_k + choice])


@pytest.mark.parametrize("device", DEVICES)
def test_indices_that_lead_nowhere(device):
    """Zeros for an expert that is none; what is no pair is skipped, however large."""
    import sgl_kernel

    X, W = torch.randn(3, 64).to(device), random_weight("Q8_0", 2 * 5, 64).view(2, 5, -1).to(device)
    nowhere = torch.tensor([-1, 2, 2**31 - 1], dtype=I32, device=device)
    assert (sgl_kernel.ggml_moe_a8_vec(X, W, nowhere, 1, number("Q8_0"), 5, 3) == 0).all()
    pairs = torch.tensor([0, 3, -1, -(2**31), 2, 2**31 - 1, 1, 99], dtype=I32, device=device)
    experts, count = (torch.tensor(v, dtype=I32, device=device) for v in ([1, -5], [2**31 - 1]))
    result = sgl_kernel.ggml_moe_a8(X, W, pairs, experts, count, number("Q8_0"), 5, 1, 3)
    alone = [t.to(device) for t in sorted_by_expert(torch.ones(1, 1, dtype=I32), 2)]
    assert_same_bits("pair 0", result[:1], sgl_kernel.ggml_moe_a8(X[:1], W, *alone, number("Q8_0"), 5, 1, 1))
    assert (result[1:] == 0).all()


def test_block_size():
    import sgl_kernel

    assert all(sgl_kernel.ggml_moe_get_block_size(number(type)) == BLOCK for type in TYPES)
    assert torch.ops.sgl_kernel.ggml_moe_get_block_size(number("Q4_K")) == BLOCK
    assert sgl_kernel.ggml_moe_get_block_size(0) == sgl_kernel.ggml_moe_get_block_size(999) == 0
