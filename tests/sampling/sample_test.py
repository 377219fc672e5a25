"""The operators that draw tokens: the set they draw from, its distribution, and their seeds."""

import pytest
import torch

from tests.harness import Bad, Operator, bad_shape, bad_value, case, checks_values, operator_tests
from tests.sampling.hard_rows import hard_rows

devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])


def kept(probs, top_k=0, top_p=1.0, min_p=0.0, top_k_first=False, slack=0.0):
    """Which tokens the filters keep, by a stable sort in float64; `slack` widens the share of top-p."""
    probs = torch.nan_to_num(probs.double(), nan=0.0).clamp(min=0.0)
    values, order = probs.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(values.shape[-1]).expand_as(values)
    above = values.cumsum(-1) - values
    mask = values >= min_p * values[..., :1]
    in_top_k = rank < (top_k if 0 < top_k < values.shape[-1] else values.shape[-1])
    if top_p < 1:
        base = torch.where(in_top_k, values, 0.0) if top_k_first else values
        mask &= (above < top_p * base.sum(-1, keepdim=True) * (1 + slack)) | (rank == 0)
    return torch.zeros_like(mask).scatter(-1, order, mask & in_top_k)


class Sampling(Operator):
    # The first has one right answer, whatever the seed.
    cases = [
        case(rows=3, vocab=1000, spread=2.0, k=1, p=0.0, min_p=1.0),
        case(rows=2, vocab=1, spread=1.0, k=3, p=0.5, min_p=0.1),
        case(rows=9, vocab=33, spread=1.0, k=5, p=0.6, min_p=0.3),
        case(rows=5, vocab=32000, spread=3.0, k=40, p=0.9, min_p=0.02),
        case(rows=4, vocab=151936, spread=1.0, k=50, p=0.9, min_p=0.05),
        case(rows=4, vocab=151936, spread=8.0, k=50, p=0.9, min_p=0.05),
        case(rows=4, vocab=151936, spread=1.0, k=70000, p=0.99, min_p=0.0),
        case(rows=1, vocab=1_000_003, spread=2.0, k=64, p=0.9, min_p=0.01),
    ]
    empty = [case(rows=0, vocab=10, spread=1.0, k=2, p=0.5, min_p=0.5)]
    strided = ("probs", "output")
    misaligned = ("probs", "output")
    scalars: dict = {}  # the schema's scalar → the case's field
    arrays: dict = {}  # the schema's array → its dtype
    top_k_first = False

    def __init__(self, **attributes):
        super().__init__(**attributes)
        self.bad = [
            bad_shape("output", (7,)),
            bad_value("maybe_indices", torch.zeros(7, dtype=torch.int64)),
            *(
                Bad("maybe_indices", f"maybe_indices={row}", change, by_value=True)
                for row, change in (
                    (-1, lambda a: a.update(maybe_indices=torch.full_like(a.output, -1))),
                    ("rows", lambda a: a.update(maybe_indices=torch.full_like(a.output, a.probs.shape[0]))),
                )
            ),
            *(bad_value(name, torch.ones(7, dtype=dtype)) for name, dtype in self.arrays.items()),
            *(bad_value(name, float("nan")) for name in self.scalars if name not in self.any_value),
        ]

    def make(self, case, draw):
        probs = torch.softmax(draw.normal((case.rows, case.vocab)) * case.spread, -1)
        args = {"probs": probs, "output": draw.empty((case.rows,), torch.int32), "maybe_indices": None}
        args |= dict.fromkeys(self.arrays)
        args |= {name: getattr(case, field) for name, field in self.scalars.items()}
        if self.name == "top_k_top_p_sampling_from_probs":
            args["top_k_val"] = float(case.k)
        # torch.compile takes no generator: the typical case, of one right answer, goes without.
        return {**args, "deterministic": True, "gen": None if case.k == 1 else draw.generator()}

    def filters(self, case):
        names = {"k": "top_k", "p": "top_p", "min_p": "min_p"}
        return {names[field]: getattr(case, field) for field in self.scalars.values()}

    def compare(self, case, args, outputs):
        samples = outputs["output"].cpu().long()
        assert ((samples >= 0) & (samples < case.vocab)).all()
        allowed = kept(args.probs, **self.filters(case), top_k_first=self.top_k_first, slack=1e-6)
        assert allowed.gather(-1, samples[:, None]).all(), "a token that the filters drop"


class TopKTopP(Sampling):
    scalars = {"top_k_val": "k", "top_p_val": "p"}
    arrays = {"maybe_top_k_arr": torch.int32, "maybe_top_p_arr": torch.float32}


test_sample = operator_tests(
    TopKTopP(
        name="top_k_top_p_sampling_from_probs",
        forms={
            "joint": lambda kernels, a: {
                "output": kernels.top_k_top_p_sampling_from_probs(
                    a.probs, int(a.top_k_val), a.top_p_val, filter_apply_order="joint", generator=a.gen
                )
            }
        },
    ),
    TopKTopP(
        name="top_k_renorm_top_p_sampling_from_probs",
        top_k_first=True,
        any_value={"top_k_val": "below 1 and from the vocabulary's size up, it is off"},
        forms={
            "top_k_first": lambda kernels, a: {
                "output": kernels.top_k_top_p_sampling_from_probs(a.probs, a.top_k_val, a.top_p_val, generator=a.gen)
            }
        },
    ),
    Sampling(
        name="top_p_sampling_from_probs",
        scalars={"top_p_val": "p"},
        arrays={"maybe_top_p_arr": torch.float32},
        forms={
            "functional": lambda kernels, a: {
                "output": kernels.top_p_sampling_from_probs(a.probs, a.top_p_val, generator=a.gen)
            }
        },
    ),
    Sampling(
        name="min_p_sampling_from_probs",
        scalars={"min_p_val": "min_p"},
        arrays={"maybe_min_p_arr": torch.float32},
        forms={
            "functional": lambda kernels, a: {
                "output": kernels.min_p_sampling_from_probs(a.probs, a.min_p_val, generator=a.gen)
            }
        },
    ),
)

# name → (how to draw from probs, what the filters keep)
DRAWS = {
    "joint": (
        lambda kernels, probs, **kw: kernels.top_k_top_p_sampling_from_probs(
            probs, 12, 0.7, filter_apply_order="joint", **kw
        ),
        dict(top_k=12, top_p=0.7),
    ),
    "top_k_first": (
        lambda kernels, probs, **kw: kernels.top_k_top_p_sampling_from_probs(probs, 12, 0.7, **kw),
        dict(top_k=12, top_p=0.7, top_k_first=True),
    ),
    "top_k": (
        lambda kernels, probs, **kw: kernels.top_k_top_p_sampling_from_probs(probs, 9, 1.0, **kw),
        dict(top_k=9),
    ),
    "top_p": (lambda kernels, probs, **kw: kernels.top_p_sampling_from_probs(probs, 0.77, **kw), dict(top_p=0.77)),
    "all": (lambda kernels, probs, **kw: kernels.top_p_sampling_from_probs(probs, 1.0, **kw), dict()),
    "min_p": (lambda kernels, probs, **kw: kernels.min_p_sampling_from_probs(probs, 0.2, **kw), dict(min_p=0.2)),
}


@devices
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_distribution(device, draw, ties, scale):
    """Pearson's chi-square against the exact distribution, at a fixed seed."""
    import sgl_kernel

    generator = torch.Generator().manual_seed(5)
    probs = torch.softmax(torch.randn(1, 40, generator=generator) * 1.5, -1)
    if ties:
        probs = (probs * 16).ceil() / 16
    probs = (probs * scale).to(device)
    function, filters = DRAWS[draw]
    count = 20000
    indices = torch.zeros(count, dtype=torch.int32, device=device)
    samples = function(sgl_kernel, probs, indices=indices, generator=torch.Generator(device).manual_seed(11)).cpu()
    allowed = kept(probs.cpu(), **filters)[0]
    expected = torch.where(allowed, probs.cpu()[0].double(), 0.0)
    expected *= count / expected.sum()
    observed = torch.bincount(samples.long(), minlength=probs.shape[-1]).double()
    assert observed[expected == 0].sum() == 0
    likely = expected > 0
    chi_square = ((observed - expected) ** 2 / expected)[likely].sum().item()
    freedom = int(likely.sum()) - 1
    # Five standard deviations above the mean.
    assert chi_square <= freedom + 5 * (2 * freedom) ** 0.5 + 1e-9


@devices
def test_top_k_of_one_is_argmax(device):
    import sgl_kernel

    generator = torch.Generator().manual_seed(2)
    probs = torch.rand(64, 5000, generator=generator)
    probs[:, 100::700] = 1.5  # ties: the lowest id wins
    probs = probs.to(device)
    for order in ("top_k_first", "joint"):
        samples = sgl_kernel.top_k_top_p_sampling_from_probs(probs, 1, 0.9, filter_apply_order=order)
        assert (samples == 100).all()
    assert (sgl_kernel.top_p_sampling_from_probs(probs, 0.0) == 100).all()
    logits = torch.randn(8, 3000, generator=generator).to(device)
    assert torch.equal(sgl_kernel.top_k_top_p_sampling_from_logits(logits, 1, 1.0).long(), logits.argmax(-1))


@devices
@pytest.mark.parametrize("draw", DRAWS)
def test_seeds(device, draw):
    """The same seed gives the same tokens; a sample depends on its place and row alone; default generators serve."""
    import sgl_kernel

    function, _ = DRAWS[draw]
    probs = torch.softmax(torch.randn(32, 20000, generator=torch.Generator().manual_seed(3)), -1).to(device)
    for kind in {"cpu", device}:
        generator = torch.Generator(kind).manual_seed(7)
        first = function(sgl_kernel, probs, generator=generator)
        second = function(sgl_kernel, probs, generator=generator)
        generator.manual_seed(7)
        assert torch.equal(first, function(sgl_kernel, probs, generator=generator))
        assert not torch.equal(first, second)
        generator.manual_seed(7)
        assert torch.equal(first[:5], function(sgl_kernel, probs[:5].clone(), generator=generator))
    torch.manual_seed(9)
    first = function(sgl_kernel, probs)
    torch.manual_seed(9)
    assert torch.equal(first, function(sgl_kernel, probs))


@devices
def test_a_threshold_for_each_sample(device):
    import sgl_kernel

    probs = torch.softmax(torch.randn(3, 999, generator=torch.Generator().manual_seed(4)) * 2, -1).to(device)
    indices = torch.tensor([2, 2, 0, 1, 1], device=device)
    top_k, top_p, min_p = [1, 20, 5, -1, 999], [1.0, 0.3, 0.0, 0.9, float("nan")], [1.0, 0.1, 0.0, float("nan"), 0.5]
    joint = sgl_kernel.top_k_top_p_sampling_from_probs(
        probs,
        torch.tensor(top_k, device=device),
        torch.tensor(top_p, device=device),
        indices,
        filter_apply_order="joint",
    )
    by_min_p = sgl_kernel.min_p_sampling_from_probs(probs, torch.tensor(min_p, device=device), indices.int())
    for sample, row in enumerate(indices.tolist()):
        allowed = kept(
            probs[row].cpu(), top_k[sample], min(top_p[sample], 1.0) if top_p[sample] == top_p[sample] else 1
        )
        assert allowed[joint[sample].item()]
        limit = min_p[sample] if min_p[sample] == min_p[sample] else 0.0
        assert kept(probs[row].cpu(), min_p=limit)[by_min_p[sample].item()]


@devices
def test_rows_that_are_no_distribution(device):
    import sgl_kernel

    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[0.0, 0, 0], [nan] * 3, [nan, 0, 2], [-1, -2, -3], [0, inf, 9]], device=device)
    for samples in (
        sgl_kernel.top_p_sampling_from_probs(rows, 0.9),
        sgl_kernel.top_k_top_p_sampling_from_probs(rows, 2, 0.9),
        sgl_kernel.top_k_top_p_sampling_from_probs(rows, 2, 0.9, filter_apply_order="joint"),
        sgl_kernel.min_p_sampling_from_probs(rows, 0.5),
    ):
        assert samples.tolist() == [0, 0, 2, 0, 1]
    with pytest.raises(ValueError, match="NaN"):
        sgl_kernel.top_p_sampling_from_probs(rows, 0.9, check_nan=True)


@devices
def test_indices_out_of_range(device):
    import sgl_kernel

    probs = torch.rand(2, 50, device=device)
    indices = torch.tensor([0, 2, -1], device=device)
    if checks_values(device):
        with pytest.raises(ValueError, match=r"maybe_indices\[1\] is 2, expected at least 0 and less than 2"):
            sgl_kernel.top_p_sampling_from_probs(probs, 0.5, indices)
    else:
        assert sgl_kernel.top_p_sampling_from_probs(probs, 0.5, indices)[1:].tolist() == [-1, -1]


def test_refuses_an_unknown_order():
    import sgl_kernel

    with pytest.raises(ValueError, match="filter_apply_order is 'top_p_first'"):
        sgl_kernel.top_k_top_p_sampling_from_probs(torch.rand(1, 5), 2, 0.5, filter_apply_order="top_p_first")


def test_the_destination_form():
    """As the serving code writes it."""
    import sgl_kernel

    probs = torch.softmax(torch.randn(6, 100), -1)
    output = torch.full((6,), -1, dtype=torch.int32)
    result = sgl_kernel.top_k_top_p_sampling_from_probs(
        probs, output, None, None, 50, None, 0.9, deterministic=True, gen=None
    )
    assert result is None and (output >= 0).all()


def draw_with_all(probs, seed):
    """[7, num_rows]: what each native sampler draws, with short and with long prefixes."""
    from sgl_kernel import _sampling

    seed = torch.tensor([seed, 1], device=probs.device)
    out = torch.empty(7, probs.shape[0], dtype=torch.int32, device=probs.device)
    many = probs.shape[1] // 2
    _sampling.top_k_top_p_sampling_from_probs(probs, out[0], None, None, 50.0, None, 0.9, True, seed)
    _sampling.top_k_renorm_top_p_sampling_from_probs(probs, out[1], None, None, 50, None, 0.9, True, seed)
    _sampling.top_p_sampling_from_probs(probs, out[2], None, None, 0.9, True, seed)
    _sampling.min_p_sampling_from_probs(probs, out[3], None, None, 0.1, True, seed)
    _sampling.top_p_sampling_from_probs(probs, out[4], None, None, 1.0, True, seed)
    _sampling.top_k_renorm_top_p_sampling_from_probs(probs, out[5], None, None, many, None, 0.99, True, seed)
    _sampling.top_k_top_p_sampling_from_probs(probs, out[6], None, None, float(many), None, 0.3, True, seed)
    return out.cpu()


FILTERS_OF_ALL = [
    dict(top_k=50, top_p=0.9),
    dict(top_k=50, top_p=0.9, top_k_first=True),
    dict(top_p=0.9),
    dict(min_p=0.1),
    dict(),
]


@devices
def test_hard_rows(device):
    rows = hard_rows(40000)
    probs = torch.stack(list(rows.values()))
    allowed = [kept(probs.clamp(max=3e38), **filters, slack=1e-6) for filters in FILTERS_OF_ALL]
    for seed in range(3):
        for drawn, mask in zip(draw_with_all(probs.to(device), seed), allowed, strict=False):
            wrong = ~mask.gather(-1, drawn.long()[:, None])[:, 0]
            assert not wrong.any(), [name for name, is_wrong in zip(rows, wrong, strict=True) if is_wrong]


@pytest.mark.cuda
@pytest.mark.parametrize("vocab", [151936, 32000, 9001, 1_000_003, 77])
def test_cuda_draws_what_the_cpu_draws(vocab):
    """Whatever the batch, which says how many blocks a row has."""
    probs = torch.stack(list(hard_rows(vocab).values()))
    for rows in (5, 15, 40, 70) if vocab < 200000 else (3,):
        batch = probs[torch.arange(rows) % probs.shape[0]]
        for seed in range(2):
            assert torch.equal(draw_with_all(batch, seed), draw_with_all(batch.cuda(), seed)), (rows, seed)


@pytest.mark.cuda
@pytest.mark.large
@pytest.mark.parametrize("draw", DRAWS)
def test_rows_beyond_32_bits(draw):
    """Rows at the ends and around the 2^31st element give the samples that copies of them give in their places."""
    import sgl_kernel

    function, _ = DRAWS[draw]
    rows, vocab = 14200, 151936
    if torch.cuda.mem_get_info()[0] < 3 * 4 * rows * vocab:
        pytest.skip("not enough memory")
    probs = torch.rand(rows, vocab, device="cuda", generator=torch.Generator("cuda").manual_seed(1)).pow_(8)
    samples = function(sgl_kernel, probs, generator=torch.Generator("cuda").manual_seed(2))
    for row in (0, 2**31 // vocab, 2**31 // vocab + 1, rows - 1):
        indices = torch.zeros(rows, dtype=torch.int32, device="cuda")
        copies = function(
            sgl_kernel, probs[row : row + 1].clone(), indices=indices, generator=torch.Generator("cuda").manual_seed(2)
        )
        assert copies[row] == samples[row]


@pytest.mark.cuda
def test_each_graph_replay_draws_anew():
    import sgl_kernel

    probs = torch.softmax(torch.randn(64, 151936, device="cuda"), -1)
    sgl_kernel.top_p_sampling_from_probs(probs, 0.9)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        samples = sgl_kernel.top_p_sampling_from_probs(probs, 0.9)
    replays = []
    for _ in range(3):
        graph.replay()
        replays.append(samples.clone())
    assert not torch.equal(replays[0], replays[1]) and not torch.equal(replays[1], replays[2])
    assert all(((r >= 0) & (r < 151936)).all() for r in replays)
