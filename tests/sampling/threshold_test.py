"""top_k_renorm_probs, top_p_renorm_probs, top_k_mask_logits."""

import pytest
import torch

from tests.harness import Operator, bad_shape, bad_value, case, operator_tests
from tests.sampling.hard_rows import hard_rows


def probabilities(case, draw):
    """softmax of normal logits times `spread`, on a grid if `grid` (many ties)."""
    logits = draw.normal((case.rows, case.vocab)) * case.spread
    if getattr(case, "grid", 0):
        logits = (logits * case.grid).round() / case.grid
    return torch.softmax(logits, dim=-1)


def kept_by_top_p(probs, top_p):
    """The highest values that sum to at least top_p of the row, and their equals; and which of all that is within a
    rounding of the boundary, where either answer is right."""
    values, order = probs.sort(dim=-1, descending=True, stable=True)
    above = values.cumsum(-1) - values
    share = (top_p * values.sum(-1, keepdim=True)).clamp(min=1e-300)  # the highest is kept
    kept, doubtful = (
        torch.zeros_like(probs, dtype=torch.bool).scatter(-1, order, mask)
        for mask in (above < share, (above - share).abs() < 1e-6 * share)
    )
    lowest = torch.where(kept, probs, float("inf")).amin(-1, keepdim=True)
    return probs >= lowest, doubtful


class TopK(Operator):
    # The list, the slices of a cluster of each size, rows that no block can hold, ties, more than a block's maxima; a
    # row for a cluster, and for a block, of which much is listed.
    cases = [
        case(rows=3, vocab=1000, k=50, spread=2.0),
        case(rows=2, vocab=1, k=1, spread=1.0),
        case(rows=3, vocab=33, k=7, spread=1.0),
        case(rows=2, vocab=32000, k=1, spread=3.0),
        case(rows=2, vocab=50257, k=5000, spread=1.0),
        case(rows=2, vocab=151936, k=50, spread=4.0, grid=2),
        case(rows=4, vocab=151936, k=20000, spread=1.0),
        case(rows=2, vocab=151936, k=0, spread=1.0),
        case(rows=1, vocab=1_000_003, k=64, spread=2.0),
        case(rows=3, vocab=32000, k=600, spread=2.0),
        case(rows=70, vocab=20000, k=1500, spread=2.0),
        case(rows=14200, vocab=151936, k=50, spread=1.0, large=True),
    ]
    empty = [case(rows=0, vocab=10, k=3, spread=1.0)]
    any_value = {"top_k_val": "below 1 and from the vocabulary's size up, nothing is dropped"}
    bad = [bad_value("maybe_top_k_arr", torch.ones(7, dtype=torch.int32))]
    input, output = "probs", "renorm_probs"

    def __init__(self, **attributes):
        super().__init__(**attributes)
        self.strided = self.misaligned = (self.input, self.output)
        self.batch = {self.input: 0, self.output: 0}
        self.bad = [*self.bad, bad_shape(self.output, (3, 999))]

    def make(self, case, draw):
        return {
            self.input: probabilities(case, draw),
            self.output: draw.empty((case.rows, case.vocab)),
            "maybe_top_k_arr": None,
            "top_k_val": case.k,
        }

    def lowest_kept(self, values, k):
        k = k if 0 < k < values.shape[-1] else values.shape[-1]
        return values.topk(k, dim=-1).values[..., -1:]

    def reference(self, case, args):
        kept = torch.where(args.probs >= self.lowest_kept(args.probs, args.top_k_val), args.probs, 0.0)
        return {"renorm_probs": kept / kept.sum(-1, keepdim=True)}

    @property
    def forms(self):
        return {"functional": lambda kernels, a: {self.output: getattr(kernels, self.name)(a[self.input], a.top_k_val)}}


class TopKMask(TopK):
    input, output = "logits", "mask_logits"

    def make(self, case, draw):
        args = super().make(case, draw)
        args["logits"] = draw.normal((case.rows, case.vocab)) * case.spread
        return args

    def reference(self, case, args):
        kept = args.logits >= self.lowest_kept(args.logits, args.top_k_val)
        return {"mask_logits": torch.where(kept, args.logits, float("-inf"))}


class TopP(Operator):
    cases = [
        case(rows=3, vocab=1000, p=0.9, spread=2.0),
        case(rows=2, vocab=1, p=0.5, spread=1.0),
        case(rows=3, vocab=33, p=0.3, spread=1.0),
        case(rows=2, vocab=32000, p=0.0, spread=3.0),
        case(rows=2, vocab=50257, p=0.999, spread=1.0),
        case(rows=4, vocab=151936, p=0.9, spread=1.0),
        case(rows=4, vocab=151936, p=0.9, spread=8.0),
        case(rows=2, vocab=151936, p=1.0, spread=1.0),
        case(rows=1, vocab=1_000_003, p=0.9, spread=2.0),
        case(rows=70, vocab=20000, p=0.9, spread=3.0),
    ]
    empty = [case(rows=0, vocab=10, p=0.5, spread=1.0)]
    bad = [
        bad_value("maybe_top_p_arr", torch.ones(7)),
        bad_value("top_p_val", float("nan")),
        bad_shape("renorm_probs", (3, 999)),
    ]
    strided = misaligned = ("probs", "renorm_probs")
    batch = {"probs": 0, "renorm_probs": 0}

    def make(self, case, draw):
        return {
            "probs": probabilities(case, draw),
            "renorm_probs": draw.empty((case.rows, case.vocab)),
            "maybe_top_p_arr": None,
            "top_p_val": case.p,
        }

    def compare(self, case, args, outputs):
        result = outputs["renorm_probs"].cpu().double()
        kept, doubtful = kept_by_top_p(args.probs, args.top_p_val)
        wrong = (result > 0) != (kept & (args.probs > 0))
        assert not (wrong & ~doubtful).any(), f"{int((wrong & ~doubtful).sum())} values are on the wrong side"
        chosen = torch.where(result > 0, args.probs, 0.0)
        torch.testing.assert_close(result, chosen / chosen.sum(-1, keepdim=True), rtol=1e-6, atol=1e-30)

    @property
    def forms(self):
        return {"functional": lambda kernels, a: {"renorm_probs": kernels.top_p_renorm_probs(a.probs, a.top_p_val)}}


test_threshold = operator_tests(
    TopK(name="top_k_renorm_probs"), TopKMask(name="top_k_mask_logits"), TopP(name="top_p_renorm_probs")
)

devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])


@devices
@pytest.mark.parametrize("vocab", [100, 30000])
def test_a_threshold_for_each_row(device, vocab):
    import sgl_kernel

    generator = torch.Generator().manual_seed(1)
    probs = torch.softmax(torch.randn(4, vocab, generator=generator), -1).to(device)
    top_k, top_p = [1, vocab, -1, 17], [0.0, 0.5, 1.0, 0.99]
    for dtype in (torch.int32, torch.int64, torch.int16):
        together = sgl_kernel.top_k_renorm_probs(probs, torch.tensor(top_k, dtype=dtype, device=device))
        for row, k in enumerate(top_k):
            assert torch.equal(together[row : row + 1], sgl_kernel.top_k_renorm_probs(probs[row : row + 1], k))
    together = sgl_kernel.top_p_renorm_prob(probs, torch.tensor(top_p, device=device))
    for row, p in enumerate(top_p):
        assert torch.equal(together[row : row + 1], sgl_kernel.top_p_renorm_probs(probs[row : row + 1], p))
    # NaN in an array drops nothing.
    nan = torch.full((4,), float("nan"), device=device)
    assert torch.equal(sgl_kernel.top_p_renorm_probs(probs, nan), sgl_kernel.top_p_renorm_probs(probs, 1.0))


@devices
def test_rows_that_are_no_distribution(device):
    import sgl_kernel

    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[0.0, 0, 0, 0], [nan] * 4, [nan, 3, -5, 1], [-1, -2, -3, -4], [inf, 1, 0, 0]], device=device)
    expected = torch.tensor([[0.0] * 4, [0] * 4, [0, 0.75, 0, 0.25], [0] * 4, [1, 0, 0, 0]], device=device)
    assert torch.allclose(sgl_kernel.top_k_renorm_probs(rows, 2), expected)
    assert torch.allclose(sgl_kernel.top_p_renorm_probs(rows, 1.0), expected)
    masked = sgl_kernel.top_k_mask_logits(torch.tensor([[nan, 2.0, -inf, inf, 1.0]], device=device), 2)
    assert masked.tolist() == [[-inf, 2.0, -inf, inf, -inf]]


@pytest.mark.parametrize("vocab", [4, 40000])
@devices
def test_infinite_logits_are_the_largest(device, vocab):
    """Ties of them are all kept."""
    import sgl_kernel

    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(0))
    logits[:, : vocab // 2] = float("inf")
    expected = logits.masked_fill(torch.arange(vocab) >= vocab // 2, -float("inf"))
    for k in (1, 2):
        assert torch.equal(sgl_kernel.top_k_mask_logits(logits.to(device), k).cpu(), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("vocab", [151936, 32000, 9001, 77])
def test_cuda_cuts_where_the_cpu_cuts(vocab):
    """Whatever the batch, which says how many blocks a row has."""
    import sgl_kernel

    hard = torch.stack(list(hard_rows(vocab).values()))
    for function, bound in (
        (sgl_kernel.top_k_renorm_probs, 50),
        (sgl_kernel.top_k_renorm_probs, vocab // 50),
        (sgl_kernel.top_k_mask_logits, 50),
        (sgl_kernel.top_k_mask_logits, vocab // 50),
        (sgl_kernel.top_p_renorm_probs, 0.3),
        (sgl_kernel.top_p_renorm_probs, 0.9),
    ):
        expected = function(hard, bound)
        for rows in (5, 15, 40, 70):
            index = torch.arange(rows) % hard.shape[0]
            assert torch.equal(expected[index], function(hard[index].cuda(), bound).cpu()), (function, bound, rows)


@devices
@pytest.mark.parametrize("rows", [3, 70])
@pytest.mark.parametrize("vocab", [1000, 40000])
def test_in_place(device, rows, vocab):
    import sgl_kernel

    probs = torch.softmax(torch.randn(rows, vocab, device=device), -1)
    for function, bound in (
        (sgl_kernel.top_p_renorm_probs, 0.7),
        (sgl_kernel.top_k_renorm_probs, 50),
        (sgl_kernel.top_k_renorm_probs, 900),
    ):
        expected, result = function(probs, bound), probs.clone()
        function(result, result, None, bound)
        assert torch.equal(result, expected)


@devices
def test_refuses_partial_overlap(device):
    import sgl_kernel

    memory = torch.rand(3, 64, device=device)
    with pytest.raises(ValueError, match="top_k_renorm_probs: renorm_probs"):
        sgl_kernel.top_k_renorm_probs(memory[:2], memory[1:], None, 5)
