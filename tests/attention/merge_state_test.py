"""merge_state and merge_state_v2."""

import math

import torch

from tests.harness import Expected, Operator, bad_alias, bad_shape, case, operator_tests

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
INF, NAN = float("inf"), float("nan")


class MergeState(Operator):
    cases = [
        case(dtype=BF16, tokens=5, heads=4, dim=128, empty=False),
        case(dtype=F16, tokens=4, heads=3, dim=64, empty=True),
        case(dtype=F32, tokens=4, heads=2, dim=576, empty=True),
        case(dtype=BF16, tokens=4, heads=2, dim=48, empty=False),
        case(dtype=F16, tokens=4, heads=2, dim=7, empty=True),
        case(dtype=F32, tokens=1, heads=1, dim=1, empty=False),
        case(dtype=F16, tokens=2100, heads=32, dim=128, empty=True),
        case(dtype=BF16, tokens=2**18 + 1, heads=64, dim=128, empty=False, large=True),
    ]
    empty = [case(dtype=BF16, tokens=0, heads=4, dim=128, empty=False)]
    strided = misaligned = ("v_a", "v_b", "v_merged", "s_a", "s_b", "s_merged")
    batch = dict.fromkeys(("v_a", "s_a", "v_b", "s_b", "v_merged", "s_merged"), 0)
    bad = [
        bad_shape("v_b", (5, 4, 64)),
        bad_shape("v_merged", (4, 4, 128)),
        bad_shape("s_a", (5, 3)),
        bad_shape("s_b", (4, 5)),
        bad_shape("s_merged", (5, 5)),
        bad_alias("s_merged", "s_a"),
    ]

    def make(self, case, draw):
        shape = (case.tokens, case.heads, case.dim)
        v_a, v_b = draw.normal(shape, case.dtype), draw.normal(shape, case.dtype)
        s_a, s_b = draw.normal(shape[:2], std=4.0), draw.normal(shape[:2], std=4.0)
        if case.empty:  # a state without keys: on either side, on both, and as +inf
            for token, (a, b) in enumerate([(-INF, 0.5), (0.5, -INF), (-INF, -INF), (INF, -0.5)]):
                s_a[token], s_b[token] = a, b
            v_a[0], v_b[1], v_a[2], v_a[3] = NAN, NAN, NAN, INF
        return {
            "v_a": v_a,
            "s_a": s_a,
            "v_b": v_b,
            "s_b": s_b,
            "v_merged": draw.empty(shape, case.dtype),
            "s_merged": draw.empty(shape[:2]),
        }

    def reference(self, case, args):
        scores = torch.stack([args.s_a, args.s_b])
        scores = torch.where(scores.isinf(), -INF, scores) * math.log(self.base)
        total = scores.logsumexp(0)
        weights = (scores - total).exp().nan_to_num(0.0)[..., None]
        # An empty state's v does not matter.
        terms = torch.where(weights == 0, 0.0, weights * torch.stack([args.v_a, args.v_b]))
        return {
            "v_merged": Expected(terms.sum(0), terms.abs().sum(0)),
            "s_merged": Expected(total / math.log(self.base), total.abs() / math.log(self.base) + 1),
        }

    @property
    def forms(self):
        def functional(kernels, a):
            v_merged, s_merged = getattr(kernels, self.name)(a.v_a, a.s_a, a.v_b, a.s_b)
            return {"v_merged": v_merged, "s_merged": s_merged}

        return {"functional": functional}


test_merge_state = operator_tests(
    MergeState(name="merge_state", base=2.0), MergeState(name="merge_state_v2", base=math.e)
)


def test_into_the_first_state():
    import sgl_kernel

    v_a, v_b = torch.randn(2, 5, 3, 64).unbind(0)
    s_a, s_b = torch.randn(2, 3, 5).transpose(1, 2).unbind(0)
    expected, _ = sgl_kernel.merge_state_v2(v_a, s_a, v_b, s_b)
    merged, _ = sgl_kernel.merge_state_v2(v_a, s_a, v_b, s_b, v_merged=v_a)
    assert merged is v_a
    assert torch.equal(merged, expected)
