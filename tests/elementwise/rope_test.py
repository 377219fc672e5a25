"""apply_rope_pos_ids_cos_sin_cache, rotary_embedding and apply_rope_with_cos_sin_cache_inplace."""

import pytest
import torch

from tests.harness import Expected, Operator, bad_alias, bad_index, bad_shape, bad_value, case, operator_tests

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
MAX_POSITION = 64


def rotate(x, table, positions, rotary_dim, interleave):
    """x: [T, H, D]; the rotated heads, and the sum of the absolute terms of each element."""
    cos, sin = table[positions.long()][:, None].tensor_split(2, dim=-1)
    head, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    first, second = (head[..., ::2], head[..., 1::2]) if interleave else head.chunk(2, dim=-1)

    def join(a, b):
        joined = torch.stack([a, b], dim=-1).flatten(-2) if interleave else torch.cat([a, b], dim=-1)
        return torch.cat([joined, rest], dim=-1)

    value = join(first * cos - second * sin, second * cos + first * sin)
    magnitude = join((first * cos).abs() + (second * sin).abs(), (second * cos).abs() + (first * sin).abs())
    return value, magnitude.abs()


def table(draw, rotary_dim, dtype=F32):
    angles = draw.uniform((MAX_POSITION, rotary_dim // 2), high=6.0)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)


class ApplyRope(Operator):
    # Whole vectors and widths that none divides, the whole head and a part of it, few tokens and many, with the cache
    # write and without, and no keys.
    cases = [
        case(dtype=BF16, tokens=5, heads=(64, 4), dim=128, rotary=128, interleave=False, cache=True),
        case(dtype=BF16, tokens=3, heads=(9, 3), dim=64, rotary=64, interleave=True, cache=False),
        case(dtype=F16, tokens=4, heads=(3, 1), dim=128, rotary=64, interleave=False, cache=True),
        case(dtype=F32, tokens=4, heads=(2, 2), dim=80, rotary=40, interleave=True, cache=True),
        case(dtype=F16, tokens=2, heads=(3, 2), dim=18, rotary=10, interleave=False, cache=True),
        case(dtype=F32, tokens=2, heads=(1, 1), dim=7, rotary=4, interleave=True, cache=True),
        case(dtype=BF16, tokens=2, heads=(4, 0), dim=64, rotary=64, interleave=False, cache=False),
        case(dtype=BF16, tokens=2, heads=(2, 1), dim=72, rotary=0, interleave=False, cache=True),
        case(dtype=F16, tokens=700, heads=(64, 4), dim=128, rotary=128, interleave=True, cache=True),
        case(
            dtype=BF16, tokens=2**18 + 1, heads=(64, 4), dim=128, rotary=128, interleave=False, cache=False, large=True
        ),
    ]
    empty = [case(dtype=BF16, tokens=0, heads=(4, 2), dim=64, rotary=64, interleave=False, cache=True)]
    inout = ("k_buffer", "v_buffer")
    strided = misaligned = ("q", "k", "q_rope", "k_rope", "v", "k_buffer", "v_buffer")
    batch = dict.fromkeys(("q", "k", "q_rope", "k_rope", "pos_ids", "v", "kv_cache_loc"), 0)
    bad = [
        bad_shape("k", (5, 4, 64)),
        bad_shape("q_rope", (5, 63, 128)),
        bad_shape("cos_sin_cache", (MAX_POSITION, 130)),
        bad_shape("cos_sin_cache", (MAX_POSITION, 127)),
        bad_shape("pos_ids", (4,)),
        bad_shape("v", (5, 3, 128)),
        bad_shape("v_buffer", (5, 4, 128)),
        bad_shape("kv_cache_loc", (4,)),
        bad_value("v", None),
        bad_value("kv_cache_loc", None),
        bad_index("pos_ids", -1),
        bad_index("pos_ids", MAX_POSITION),
        bad_index("kv_cache_loc", -1),
        bad_index("kv_cache_loc", 8),
        bad_alias("k_buffer", "v_buffer"),
        bad_alias("k_rope", "v"),
    ]

    def make(self, case, draw):
        q_heads, k_heads = case.heads
        q = draw.normal((case.tokens, q_heads, case.dim), case.dtype)
        k = draw.normal((case.tokens, k_heads, case.dim), case.dtype)
        slots = case.tokens + 3
        buffers = draw.normal((2, slots, k_heads, case.dim), case.dtype)
        wide = torch.int64 if case.tokens % 2 else torch.int32
        return {
            "q": q,
            "k": k,
            "q_rope": torch.empty_like(q),
            "k_rope": torch.empty_like(k),
            "cos_sin_cache": table(draw, case.rotary),
            "pos_ids": draw.integers(0, MAX_POSITION, (case.tokens,), wide),
            "interleave": case.interleave,
            "enable_pdl": True,
            "v": draw.normal(k.shape, case.dtype) if case.cache else None,
            "k_buffer": buffers[0].clone() if case.cache else None,
            "v_buffer": buffers[1].clone() if case.cache else None,
            "kv_cache_loc": draw.permutation(slots, wide)[: case.tokens].clone() if case.cache else None,
        }

    def reference(self, case, args):
        rotated = {
            name: Expected(*rotate(args[name[0]], args.cos_sin_cache, args.pos_ids, case.rotary, case.interleave))
            for name in ("q_rope", "k_rope")
        }
        if not case.cache:
            return rotated
        slots = args.kv_cache_loc.long()
        k_buffer = Expected(args.k_buffer.clone(), args.k_buffer.abs())
        k_buffer.value[slots] = rotated["k_rope"].value
        k_buffer.magnitude[slots] = rotated["k_rope"].magnitude
        v_buffer = args.v_buffer.clone()
        v_buffer[slots] = args.v
        return {**rotated, "k_buffer": k_buffer, "v_buffer": v_buffer}


class RotaryEmbedding(Operator):
    cases = [
        case(dtype=BF16, lead=(5,), heads=(8, 2), dim=64, rotary=64, flat=True, neox=True, table=F32),
        case(dtype=BF16, lead=(5,), heads=(8, 2), dim=128, rotary=64, flat=False, neox=True, table=BF16),
        case(dtype=F16, lead=(2, 3), heads=(3, 1), dim=80, rotary=80, flat=True, neox=False, table=F16),
        case(dtype=F32, lead=(2, 3), heads=(2, 2), dim=20, rotary=10, flat=False, neox=True, table=F32),
        case(dtype=BF16, lead=(4,), heads=(4, None), dim=64, rotary=32, flat=False, neox=False, table=F32),
    ]
    empty = [case(dtype=BF16, lead=(0,), heads=(4, 2), dim=64, rotary=64, flat=True, neox=True, table=F32)]
    inout = ("query", "key")
    strided = misaligned = ("query", "key")
    batch = dict.fromkeys(("positions", "query", "key"), 0)
    bad = [
        bad_value("head_size", 0),
        bad_value("head_size", 48),
        bad_shape("query", (4, 512)),
        bad_shape("key", (5, 100)),
        bad_shape("cos_sin_cache", (MAX_POSITION, 66)),
        bad_index("positions", -1),
        bad_index("positions", MAX_POSITION),
        bad_alias("key", "query"),
    ]

    def make(self, case, draw):
        def heads(count):
            if count is None:
                return None
            x = draw.normal((*case.lead, count, case.dim), case.dtype)
            return x.flatten(-2) if case.flat else x

        return {
            "positions": draw.integers(0, MAX_POSITION, case.lead, torch.int64),
            "query": heads(case.heads[0]),
            "key": heads(case.heads[1]),
            "head_size": case.dim,
            "cos_sin_cache": table(draw, case.rotary, case.table),
            "is_neox": case.neox,
        }

    def reference(self, case, args):
        def rotated(x):
            value, magnitude = rotate(
                x.reshape(-1, x.shape[len(case.lead) :].numel() // case.dim, case.dim),
                args.cos_sin_cache,
                args.positions.flatten(),
                case.rotary,
                not case.neox,
            )
            return Expected(value.reshape(x.shape), magnitude.reshape(x.shape))

        return {name: rotated(args[name]) for name in ("query", "key") if args[name] is not None}


test_rope = operator_tests(ApplyRope(name="apply_rope_pos_ids_cos_sin_cache"), RotaryEmbedding(name="rotary_embedding"))

devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])


@devices
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("tokens", [3, 600])
def test_inplace_on_slices_of_qkv(device, is_neox, tokens):
    """In place on parts of one tensor, into halves of one cache: as out of place on parts of their own."""
    import sgl_kernel

    generator = torch.Generator().manual_seed(0)
    q_heads, k_heads, dim = 64, 4, 128
    widths = [q_heads * dim, k_heads * dim, k_heads * dim]
    qkv = torch.randn(tokens, sum(widths), generator=generator).to(device, BF16)
    cos_sin_cache = torch.randn(MAX_POSITION, dim, generator=generator).to(device)
    positions = torch.randint(0, MAX_POSITION, (tokens,), generator=generator).to(device)
    slots = torch.randperm(tokens + 5, generator=generator)[:tokens].to(device)
    q, k, v = (part.reshape(tokens, -1, dim).clone() for part in qkv.split(widths, dim=-1))
    q_rope, k_rope = torch.empty_like(q), torch.empty_like(k)
    sgl_kernel.apply_rope_pos_ids_cos_sin_cache(q, k, q_rope, k_rope, cos_sin_cache, positions, not is_neox)

    cache = torch.zeros(tokens + 5, 2, k_heads * dim, dtype=BF16, device=device)
    query, key, value = qkv.split(widths, dim=-1)
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(
        positions,
        query,
        key,
        dim,
        cos_sin_cache,
        is_neox,
        sgl_kernel.FusedSetKVBufferArg(value, cache[:, 0], cache[:, 1], None, None, slots),
    )
    assert torch.equal(query, q_rope.flatten(1))
    assert torch.equal(key, k_rope.flatten(1))
    assert torch.equal(value, v.flatten(1))
    assert torch.equal(cache[slots, 0], key)
    assert torch.equal(cache[slots, 1], value)


def test_scaled_cache_is_refused():
    import sgl_kernel

    x = torch.zeros(1, 64)
    fused = sgl_kernel.FusedSetKVBufferArg(x, x.clone(), x.clone(), 1.0, None, torch.tensor([0]))
    with pytest.raises(NotImplementedError, match="k_scale"):
        sgl_kernel.apply_rope_with_cos_sin_cache_inplace(
            torch.tensor([0]), x, x.clone(), 64, x, fused_set_kv_buffer_arg=fused
        )


@pytest.mark.parametrize("position", [-1, 8])
def test_position_out_of_range(position):
    import sgl_kernel

    query = torch.randn(2, 64)
    before = query.clone()
    with pytest.raises(ValueError, match=rf"rotary_embedding: positions\[1\] is {position}, expected .* less than 8"):
        sgl_kernel.rotary_embedding(torch.tensor([0, position]), query, None, 64, torch.randn(8, 64))
    assert torch.equal(query, before)
