"""fwd's index tensors: what leads out of a tensor, or into another sequence, is refused before anything is written."""

import pytest
import torch

from tests.harness import checks_values

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
PAGES, PAGE_SIZE, BATCH = 9, 4, 3
TOTAL = 12  # rows of the ragged tensors

# The right ones: 10, 3 and 0 keys in pages; ragged sequences of 5, 0 and 7 rows.
PAGE_TABLE = [[8, 3, 5, -1], [0, 99, -1, -1], [-1, -1, -1, -1]]
CACHE_SEQLENS = [10, 3, 0]
STARTS = [0, 5, 5, 12]


def attend(device, cache, **changed):
    """Over pages, with two new keys of each sequence if `append`."""
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    append = changed.pop("append", False)
    indices = {"page_table": PAGE_TABLE, "cache_seqlens": CACHE_SEQLENS} | changed
    new = torch.ones(BATCH, 2, 1, 64, dtype=torch.bfloat16, device=device) if append else None
    if append and "page_table" not in changed:
        indices["page_table"] = [[8, 3, 5, -1], [0, 7, -1, -1], [1, -1, -1, -1]]
    tensors = {name: torch.tensor(values, dtype=torch.int32, device=device) for name, values in indices.items()}
    q = torch.ones(BATCH, 2, 2, 64, dtype=torch.bfloat16, device=device)
    return flash_attn_with_kvcache(q, cache[0], cache[1], new, new, **tensors)


def attend_ragged(device, rows, **changed):
    from sgl_kernel.flash_attn import flash_attn_varlen_func

    indices = {"cu_seqlens_q": STARTS, "cu_seqlens_k": STARTS} | changed
    tensors = {name: torch.tensor(values, dtype=torch.int32, device=device) for name, values in indices.items()}
    return flash_attn_varlen_func(rows.view(TOTAL, 2, 64), rows[:, :1], rows[:, :1], **tensors)


def pages(device):
    return torch.zeros(2, PAGES, PAGE_SIZE, 1, 64, dtype=torch.bfloat16, device=device)


def ragged_rows(device):
    return torch.ones(TOTAL, 2, 64, dtype=torch.bfloat16, device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_right_indices(device):
    """Behind the pages of a sequence's keys anything may stand."""
    assert not attend(device, pages(device)).any()
    assert attend(device, pages(device), append=True).any()
    assert (attend_ragged(device, ragged_rows(device)) == 1).all()
    assert (attend_ragged(device, ragged_rows(device), seqused_k=[5, 0, 1])[:5] == 1).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"page_table": [[8, 3, 9], [0, 0, 0], [0, 0, 0]]}, r"page_table\[0, 2\] is 9, expected .* less than 9"),
        ({"page_table": [[8, 3, 1], [-1, 0, 0], [0, 0, 0]]}, r"page_table\[1, 0\] is -1, expected at least 0"),
        ({"cache_batch_idx": [0, 1, 3]}, r"kv_batch_idx\[2\] is 3, expected from 0 to 2"),
        ({"cache_batch_idx": [0, -1, 2]}, r"kv_batch_idx\[1\] is -1, expected from 0 to 2"),
        ({"cache_leftpad": [0, -1, 0]}, r"leftpad_k\[1\] is -1, expected from 0 to 16"),
        ({"cache_leftpad": [17, 0, 0]}, r"leftpad_k\[0\] is 17, expected from 0 to 16"),
        ({"append": True, "cache_seqlens": [10, 15, 0]}, r"seqused_k\[1\] is 15, expected from 0 to 14"),
        ({"append": True, "cache_seqlens": [10, 3, -1]}, r"seqused_k\[2\] is -1, expected from 0 to 14"),
        ({"append": True, "page_table": PAGE_TABLE}, r"page_table\[1, 1\] is 99, expected"),
    ],
)
def test_wrong_pages(device, changed, message):
    if not checks_values(device):
        pytest.skip("values on a GPU are checked under SGL_KERNEL_CHECK=1")
    cache = pages(device)
    with pytest.raises(ValueError, match="fwd: " + message):
        attend(device, cache, **changed)
    assert not cache.any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cu_seqlens_q": [-1, 5, 5, 12]}, r"cu_seqlens_q\[0\] is -1, expected from 0 to 12"),
        ({"cu_seqlens_q": [0, 5, 4, 12]}, r"cu_seqlens_q\[2\] is 4, expected from 5 \(the one before it\) to 12"),
        ({"cu_seqlens_k": [0, 5, 5, 13]}, r"cu_seqlens_k\[3\] is 13, expected from 5 .* to 12"),
        ({"seqused_q": [5, 1, 7]}, r"seqused_q\[1\] is 1, expected from 0 to 0"),
        ({"seqused_k": [6, 0, 7]}, r"seqused_k\[0\] is 6, expected from 0 to 5"),
    ],
)
def test_wrong_ragged_sequences(device, changed, message):
    if not checks_values(device):
        pytest.skip("values on a GPU are checked under SGL_KERNEL_CHECK=1")
    with pytest.raises(ValueError, match="fwd: " + message):
        attend_ragged(device, ragged_rows(device), **changed)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("last", [13, 11])
def test_new_keys_of_ragged_sequences(device, last):
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    if not checks_values(device):
        pytest.skip("values on a GPU are checked under SGL_KERNEL_CHECK=1")
    cache = torch.zeros(2, BATCH, 20, 1, 64, dtype=torch.bfloat16, device=device)
    q = torch.ones(BATCH, 1, 1, 64, dtype=torch.bfloat16, device=device)
    new = torch.ones(TOTAL, 1, 64, dtype=torch.bfloat16, device=device)
    used, starts = (torch.tensor(values, dtype=torch.int32, device=device) for values in ([1, 2, 3], [0, 12, 12, last]))
    with pytest.raises(ValueError, match=rf"fwd: cu_seqlens_k_new\[3\] is {last}, expected from 12 .* to 12"):
        flash_attn_with_kvcache(q, *cache, new, new, cache_seqlens=used, cu_seqlens_k_new=starts)
    assert not cache.any()


@pytest.mark.cuda
def test_capture_looks_at_nothing():
    cache = pages("cuda")
    expected = attend("cuda", cache)
    table, used = (torch.tensor(values, dtype=torch.int32, device="cuda") for values in (PAGE_TABLE, CACHE_SEQLENS))
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    q = torch.ones(BATCH, 2, 2, 64, dtype=torch.bfloat16, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flash_attn_with_kvcache(q, *cache, page_table=table, cache_seqlens=used)
    graph.replay()
    assert torch.equal(out, expected)
