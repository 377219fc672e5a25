"""fwd's integers, however absurd: an exception that names them, or a choice that can be used."""

import itertools

import pytest
import torch

from sgl_kernel import _attention as native
from sgl_kernel.flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
EXTENTS = [-(2**63), -1, 0, 1, 2, 5, 100, 2**31 - 1, 2**31, 2**62, 2**63 - 1]


def test_splits_of_any_extents():
    """Of heads that do not go into groups, too: what fwd() refuses comes after this choice."""
    for batch, heads, heads_k, seqlen_q, seqlen_k in itertools.product(
        EXTENTS, [0, 2, 2**62], [4, 2**62], EXTENTS, EXTENTS
    ):
        for wide, window in ((False, -1), (True, 2**63 - 1)):
            extents = (batch, heads, heads_k, seqlen_q, seqlen_k, 128, wide, False, window, window)
            assert 1 <= native.fwd_num_splits(*extents, 132, 16) <= 256
    assert native.fwd_num_splits(1, 64, 4, 1, 8192, 128, False, False, -1, -1, 132, 1) > 1


@pytest.mark.parametrize("num_splits", [257, 2**31, 2**62])
def test_no_scratch_for_splits_that_are_refused(num_splits):
    assert native.fwd_num_partials(num_splits, 64, 4, 1, 128, False, 1) == 1


def ragged(device, heads=4):
    q = torch.randn(6, heads, 64, dtype=torch.bfloat16, device=device)
    k, v = (torch.randn(6, 2, 64, dtype=torch.bfloat16, device=device) for _ in range(2))
    starts = torch.tensor([0, 2, 6], dtype=torch.int32, device=device)
    return q, k, v, starts, starts


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("extent", [-1, 2**31, 2**62, 2**63 - 1])
@pytest.mark.parametrize("name", ["max_seqlen_q", "max_seqlen_k"])
def test_longest_sequences(device, name, extent):
    with pytest.raises(ValueError, match=f"fwd: {name} is {extent}, expected from 0 to"):
        flash_attn_varlen_func(*ragged(device), **{name: extent})


@pytest.mark.parametrize("device", DEVICES)
def test_fewer_heads_than_kv_heads(device):
    q = torch.randn(2, 1, 2, 64, dtype=torch.bfloat16, device=device)
    k, v = (torch.randn(2, 9, 4, 64, dtype=torch.bfloat16, device=device) for _ in range(2))
    with pytest.raises(ValueError, match=r"fwd: k.shape\[-2\] is 4"):
        flash_attn_with_kvcache(q, k, v)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["cu_seqlens_q", "page_table"])
def test_index_tensors_without_dimensions(device, name):
    q, k, v, starts, _ = ragged(device)
    indices = {"cu_seqlens_q": starts, name: torch.tensor(0, dtype=torch.int32, device=device)}
    with pytest.raises(ValueError, match=f"fwd: {name} has 0 dimensions"):
        flash_attn_with_kvcache(q, k[None], v[None], **indices)
