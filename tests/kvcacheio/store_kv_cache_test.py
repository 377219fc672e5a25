"""store_kv_cache and set_kv_buffer_kernel."""

from functools import partial

import pytest
import torch

from tests.harness import Bad, Operator, bad_alias, bad_index, bad_shape, case, operator_tests


def slots_in(args, cache):
    """Slots that lie in the cache that is written."""
    args["out_loc"] = args[cache].view(-1)[: 4 * len(args.out_loc)].view(torch.int64)


class StoreKvCache(Operator):
    # Words of 16, 8, 4, 2 and 1 bytes; rows of one head and of several; k and v of different widths.
    cases = [
        case(dtype=torch.bfloat16, tokens=5, k=(4, 128), v=(4, 128)),
        case(dtype=torch.float32, tokens=3, k=(576,), v=(512,)),
        case(dtype=torch.float8_e4m3fn, tokens=7, k=(2, 128), v=(2, 128)),
        case(dtype=torch.float16, tokens=2, k=(1, 4), v=(1, 4)),
        case(dtype=torch.float16, tokens=2, k=(3, 2), v=(3, 2)),
        case(dtype=torch.bfloat16, tokens=2, k=(3, 5), v=(3, 5)),
        case(dtype=torch.uint8, tokens=4, k=(3,), v=(5,)),
        case(dtype=torch.int64, tokens=1, k=(2, 2), v=(2, 2)),
        case(dtype=torch.bfloat16, tokens=9001, k=(8, 128), v=(8, 128)),
    ]
    empty = [
        case(dtype=torch.bfloat16, tokens=0, k=(4, 128), v=(4, 128)),
        case(dtype=torch.float32, tokens=3, k=(0,), v=(0,)),
    ]
    inout = ("k_cache", "v_cache")
    strided = misaligned = ("k_cache", "v_cache", "k", "v")
    bad = [
        bad_shape("k", (4, 4, 128)),
        bad_shape("v", (5, 4, 64)),
        bad_shape("v_cache", (7, 4, 128)),
        bad_shape("out_loc", (4,)),
        bad_index("out_loc", -1),
        bad_index("out_loc", 8),
        bad_alias("k_cache", "v_cache"),
        bad_alias("k", "k_cache", names="k_cache"),
        *(Bad(cache, f"slots in {cache}", partial(slots_in, cache=cache)) for cache in ("k_cache", "v_cache")),
    ]

    def make(self, case, draw):
        slots = case.tokens + 3

        def rows(count, width):
            if case.dtype.is_floating_point:
                return draw.normal((count, *width), case.dtype)
            return draw.integers(0, 100, (count, *width), case.dtype)

        index = torch.int64 if case.tokens % 2 else torch.int32
        return {
            "k_cache": rows(slots, case.k),
            "v_cache": rows(slots, case.v),
            "out_loc": draw.permutation(slots, index)[: case.tokens].clone(),
            "k": rows(case.tokens, case.k),
            "v": rows(case.tokens, case.v),
        }

    def reference(self, case, args):
        slots = args.out_loc.long()
        k_cache, v_cache = args.k_cache.clone(), args.v_cache.clone()
        k_cache[slots] = args.k
        v_cache[slots] = args.v
        return {"k_cache": k_cache, "v_cache": v_cache}

    forms = {
        "set_kv_buffer_kernel": lambda kernels, a: kernels.set_kv_buffer_kernel(
            a.k_cache, a.v_cache, a.out_loc, a.k, a.v
        ),
    }


test_store_kv_cache = operator_tests(StoreKvCache(name="store_kv_cache"))

devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])


@devices
def test_strided_heads(device):
    """A cache by heads first, one that holds k and v in turn, and rows that are parts of a fused qkv."""
    import sgl_kernel

    generator = torch.Generator().manual_seed(0)
    slots, heads, dim, tokens = 9, 4, 64, 6
    by_heads = torch.zeros(heads, slots, dim, device=device).transpose(0, 1)
    in_turn = torch.zeros(slots, heads, 2, dim, device=device)[:, :, 1]
    qkv = torch.randn(tokens, 3 * heads * dim, generator=generator).to(device)
    k, v = (part.view(tokens, heads, dim) for part in qkv.split(heads * dim, dim=-1)[1:])
    where = torch.randperm(slots, generator=generator)[:tokens].to(device)
    sgl_kernel.set_kv_buffer_kernel(by_heads, in_turn, where, k, v)
    expected = torch.zeros(2, slots, heads, dim, device=device)
    expected[0, where], expected[1, where] = k, v
    assert torch.equal(by_heads, expected[0])
    assert torch.equal(in_turn, expected[1])


def test_fallback():
    import sgl_kernel

    k_cache, v_cache = torch.zeros(2, 4, 8).unbind(0)
    k, v = torch.randn(2, 2, 8).unbind(0)
    sgl_kernel.memory.set_kv_buffer_kernel(k_cache, v_cache, torch.tensor([3, 0]), k, v, fallback=True)
    assert torch.equal(k_cache[[3, 0]], k)
    assert torch.equal(v_cache[[3, 0]], v)


@pytest.mark.parametrize("slot", [-1, 4])
def test_slot_out_of_range(slot):
    import sgl_kernel

    cache = torch.zeros(2, 4, 8)
    rows = torch.ones(2, 8)
    with pytest.raises(ValueError, match=rf"store_kv_cache: out_loc\[1\] is {slot}, expected .* less than 4"):
        sgl_kernel.store_kv_cache(cache[0], cache[1], torch.tensor([0, slot]), rows, rows)
    assert not cache.any()
