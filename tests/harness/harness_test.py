"""The harness itself: it has to notice what it is for."""

import pytest
import torch

from tests.harness import Arguments, Expected, assert_close
from tests.harness.memory import Snapshot, poison, relocate
from tests.harness.schema import parse_schema


def test_schema():
    schema = parse_schema("f(Tensor! out, Tensor!? k, Tensor[] xs, int n, Tensor? indices=None)-> (Tensor[])")
    assert [(a.name, a.type, a.written) for a in schema.arguments] == [
        ("out", "Tensor", True),
        ("k", "Tensor?", True),
        ("xs", "Tensor[]", False),
        ("n", "int", False),
        ("indices", "Tensor?", False),
    ]
    assert (schema.name, schema.returns, schema.written) == ("f", "Tensor[]", ["out", "k"])
    assert parse_schema("g() -> (Tensor, Tensor)").returns == "(Tensor, Tensor)"


@pytest.fixture
def args():
    buffer = torch.arange(24, dtype=torch.bfloat16)
    moved = relocate(Arguments(out=torch.zeros(4, 8)[:, :5], q=buffer[:8], k=buffer[8:], eps=1.0))
    poison(moved, ["out"])
    return moved


def test_relocated_arguments_keep_their_layout(args):
    assert args.out.stride() == (8, 1) and args.out.isnan().all()
    assert torch.equal(args.k, torch.arange(8, 24, dtype=torch.bfloat16))
    assert args.k.data_ptr() == args.q.data_ptr() + 16


@pytest.mark.parametrize(
    "write",
    [
        lambda a: a.out.as_strided((1,), (1,), a.out.storage_offset() - 1).fill_(0),  # before
        lambda a: a.out.as_strided((1,), (1,), a.out.storage_offset() + 5).fill_(1),  # between two rows
        lambda a: a.out.as_strided((1,), (1,), a.out.storage_offset() + 32).fill_(0),  # behind
        lambda a: a.q[0].fill_(7),
    ],
)
def test_stray_writes_are_noticed(args, write):
    snapshot = Snapshot(args)
    args.out.fill_(1.0)
    snapshot.assert_unchanged(but=["out"])
    write(args)
    with pytest.raises(AssertionError, match="changed"):
        snapshot.assert_unchanged(but=["out"])


@pytest.mark.parametrize(
    ("actual", "expected", "right"),
    [
        (1.0 + 2**-8, 1.0 + 2**-9, True),  # rounded up from the middle
        (1.0 + 2**-7, 1.0 + 2**-9, False),  # two steps away
        (float("nan"), 1.0, False),
        (float("nan"), float("nan"), True),
        (float("inf"), 1e39, True),  # beyond bfloat16
        (float("-inf"), 1e39, False),
        (0.0, Expected(torch.tensor([2.0**-22], dtype=torch.float64), torch.ones(1)), True),
        (0.0, 2.0**-22, False),
    ],
)
def test_tolerance(actual, expected, right):
    if not isinstance(expected, Expected):
        expected = torch.tensor([expected], dtype=torch.float64)
    actual = torch.tensor([actual]).to(torch.bfloat16)
    if right:
        assert_close("x", actual, expected)
    else:
        with pytest.raises(AssertionError, match="1 of 1 elements are wrong"):
            assert_close("x", actual, expected)


def test_integers_are_exact():
    assert_close("x", torch.tensor([1, -1]), torch.tensor([1, -1]))
    with pytest.raises(AssertionError, match=r"\[1\], is -1, expected 1"):
        assert_close("x", torch.tensor([1, -1]), torch.tensor([1, 1]))
