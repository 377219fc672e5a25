"""fwd, and flash_attn_with_kvcache and flash_attn_varlen_func over it."""

import math
from functools import partial

import pytest
import torch

from tests.harness import Expected, Operator, assert_close, bad_dtype, bad_shape, bad_value, case, operator_tests

F32, F16, BF16, F8 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn

ARGUMENTS = """q k v k_new v_new q_v out cu_seqlens_q cu_seqlens_k cu_seqlens_k_new seqused_q seqused_k max_seqlen_q
max_seqlen_k page_table kv_batch_idx leftpad_k rotary_cos rotary_sin seqlens_rotary q_descale k_descale v_descale
softmax_scale is_causal window_size_left window_size_right attention_chunk softcap is_rotary_interleaved
scheduler_metadata num_splits pack_gqa sm_margin sinks""".split()
DEFAULTS = {
    "is_causal": False,
    "window_size_left": -1,
    "window_size_right": -1,
    "attention_chunk": 0,
    "softcap": 0.0,
    "is_rotary_interleaved": False,
    "num_splits": 1,
    "sm_margin": 0,
}
ROUNDINGS = 32  # of f32 that a sum passes through; the unit of `magnitude` below


def attend_one(args, q, q_v, k, v, dtype, rotated):
    """The definition, for one sequence in float64: q [Sq, H, D], k [Sk, Hk, D], v [Sk, Hk, Dv], q_v [Sq, H, Dv]
    or None.

    Returns out [Sq, H, Dv] and lse [H, Sq], each with the magnitude that its error is relative to."""
    group, sinks = q.shape[1] // k.shape[1], args["sinks"]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scale = args["softmax_scale"] or 1 / math.sqrt(q.shape[-1])
    if q_v is not None:
        q, k = torch.cat([q, q_v], -1), torch.cat([k, v], -1)
    s = torch.einsum("ihd,jhd->hij", q, k) * scale
    # An error of a score is an error of its probability as large: in units of the allowed roundings.
    absolute = (
        torch.einsum("ihd,jhd->hij", q.abs(), k.abs()).amax(-1, keepdim=True) * scale if k.shape[0] else s.sum(-1, True)
    )
    # That of probabilities: they are float16 if the rest is float8_e4m3fn.
    unit = torch.finfo(F16 if dtype == F8 else dtype).eps / 2 / (ROUNDINGS * 2.0**-24) if dtype != F32 else 0.0
    if args["softcap"] > 0:
        s = args["softcap"] * torch.tanh(s / args["softcap"])
    i, j = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0], torch.arange(k.shape[0])[None]
    seen = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool)
    if args["is_causal"]:
        seen &= j <= i
    elif args["window_size_right"] >= 0:
        seen &= j <= i + args["window_size_right"]
    if args["window_size_left"] >= 0:
        seen &= j >= i - args["window_size_left"]
    if args["attention_chunk"] > 0:
        seen &= i.div(args["attention_chunk"], rounding_mode="floor") == j // args["attention_chunk"]
    s = s.masked_fill(~seen, -math.inf)
    logits = s if sinks is None else torch.cat([s, sinks[:, None, None].expand(-1, q.shape[0], 1)], -1)
    lse = torch.logsumexp(logits, -1)
    p = torch.exp(s - lse.nan_to_num(neginf=0.0)[..., None])
    rotation = torch.finfo(dtype).eps / (ROUNDINGS * 2.0**-24) if rotated else 0
    slack = 1 + absolute * (1 + rotation)
    out = torch.einsum("hij,jhd->ihd", p, v)
    magnitude = torch.einsum("hij,jhd->ihd", p, v.abs()) * (slack + unit).transpose(0, 1)
    return out, magnitude, lse, lse.abs().nan_to_num(posinf=0.0) + slack[..., 0]


def rotate(x, cos, sin, interleaved):
    """x [S, H, D] by the angles of cos and sin [S, rotary_dim / 2]."""
    pairs = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    x = x.clone()
    first, second = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)) if interleaved else (slice(0, pairs), slice(pairs, 2 * pairs))
    )
    a, b = x[..., first].clone(), x[..., second].clone()
    x[..., first], x[..., second] = a * cos - b * sin, a * sin + b * cos
    return x


def reference(args, dtype):
    """Of all results, from the arguments as float64 on the CPU: name → Expected. k and v are the caches afterwards."""
    q, k, v = args["q"], args["k"].clone(), args["v"].clone()
    cu_q, cu_k, cu_new = args["cu_seqlens_q"], args["cu_seqlens_k"], args["cu_seqlens_k_new"]
    batch = q.shape[0] if cu_q is None else cu_q.shape[0] - 1
    num_heads = q.shape[-2]
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=torch.float64)
    lse = torch.full(
        (num_heads, q.shape[0]) if cu_q is not None else (batch, num_heads, q.shape[1]), -math.inf
    ).double()
    out_magnitude, lse_magnitude = torch.zeros_like(out), torch.zeros_like(lse)
    for b in range(batch):
        rows = slice(cu_q[b], cu_q[b + 1]) if cu_q is not None else (b,)
        row = int(args["kv_batch_idx"][b]) if args["kv_batch_idx"] is not None else b
        leftpad = int(args["leftpad_k"][b]) if args["leftpad_k"] is not None else 0
        if args["page_table"] is not None:
            pages = args["page_table"][row].long()
            slots = (pages[:, None] * k.shape[1] + torch.arange(k.shape[1])).flatten()
        elif cu_k is not None:
            slots = torch.arange(cu_k[b], cu_k[b + 1])
        else:
            slots = row * k.shape[1] + torch.arange(k.shape[1])
        flat_k, flat_v = k.view(-1, *k.shape[-2:]), v.view(-1, *v.shape[-2:])
        length = int(args["seqused_k"][b]) if args["seqused_k"] is not None else len(slots)
        queries = q[rows]
        if args["k_new"] is not None:
            new = slice(cu_new[b], cu_new[b + 1]) if cu_new is not None else (b,)
            k_new, v_new = args["k_new"][new], args["v_new"][new]
            if args["rotary_cos"] is not None:
                cos, sin, how = args["rotary_cos"], args["rotary_sin"], args["is_rotary_interleaved"]
                first = int(args["seqlens_rotary"][b]) if args["seqlens_rotary"] is not None else length - leftpad
                at = first + torch.arange(k_new.shape[0])
                k_new = rotate(k_new, cos[at], sin[at], how).to(dtype).double()
                local = args["is_causal"] or max(args["window_size_left"], args["window_size_right"]) >= 0
                at = first + torch.arange(queries.shape[0]) * (local or args["attention_chunk"] > 0)
                queries = rotate(queries, cos[at], sin[at], how).to(dtype).double()
            flat_k[slots[length : length + k_new.shape[0]]] = k_new
            flat_v[slots[length : length + k_new.shape[0]]] = v_new
            length += k_new.shape[0]
        used = slots[leftpad:length]
        keys, values = flat_k[used], flat_v[used]
        q_descale, k_descale, v_descale = (
            args[name][b, :, None] if args[name] is not None else torch.ones(k.shape[-2], 1)
            for name in ("q_descale", "k_descale", "v_descale")
        )
        queries = queries * q_descale.repeat_interleave(num_heads // k.shape[-2], 0)
        q_v = args["q_v"][rows] if args["q_v"] is not None else None
        o, o_magnitude, one, l_magnitude = attend_one(
            args, queries, q_v, keys * k_descale, values * v_descale, dtype, args["rotary_cos"] is not None
        )
        out[rows], out_magnitude[rows] = o, o_magnitude
        where = (slice(None), rows) if cu_q is not None else (b,)
        lse[where], lse_magnitude[where] = one, l_magnitude
    turned = Expected(k, 2 * k.abs().amax(-1, keepdim=True).expand_as(k)) if args["rotary_cos"] is not None else k
    return {"result0": Expected(out, out_magnitude), "result1": Expected(lse, lse_magnitude), "k": turned, "v": v}


def lengths(draw, low, high, count):
    """Between low and high, both of them among these."""
    drawn = draw.integers(low, high + 1, (count,))
    drawn[0] = high
    drawn[-1] = low
    return drawn


def starts(lengths):
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0).to(torch.int32)])


class Attention(Operator):
    inout = ("k", "v")
    f32_roundings = ROUNDINGS
    bad = [
        bad_value("softmax_scale", 0.0),
        bad_value("softmax_scale", float("nan")),
        bad_value("softcap", -1.0),
        bad_value("window_size_left", -2),
        bad_value("window_size_right", -2),
        bad_value("attention_chunk", -1),
        bad_value("num_splits", 257),
        bad_value("sm_margin", -1),
        bad_value("q_v", torch.zeros(1)),
        *(bad_value(name, torch.zeros(1)) for name in ("q_descale", "k_descale", "v_descale")),
        # Of two that go together, the message may name the other one.
        bad_value("k_new", torch.zeros(1), names="k_new|v_new"),
        bad_value("v_new", torch.zeros(1)),
        bad_value("rotary_cos", torch.zeros(1), names="rotary_cos|rotary_sin"),
        bad_value("rotary_sin", torch.zeros(1)),
        bad_value("cu_seqlens_q", torch.zeros(1), names="cu_seqlens_q|q"),
        bad_value("cu_seqlens_k", torch.zeros(1), names="cu_seqlens_k|k"),
        *(
            bad_value(name, torch.zeros(1))
            for name in "out cu_seqlens_k_new seqused_q seqused_k page_table kv_batch_idx leftpad_k sinks".split()
        ),
        bad_value("seqlens_rotary", torch.zeros(1)),
        bad_shape("v", (1, 2, 3, 4)),
    ]
    accepts = {"scheduler_metadata.given": "there for the API: it changes nothing"}
    any_value = {
        "max_seqlen_q": "without cu_seqlens_q it is not looked at",
        "max_seqlen_k": "without cu_seqlens_k it is not looked at",
        "scheduler_metadata": "it changes nothing",
    }

    def python(self, sgl_kernel, args):
        return sgl_kernel.flash_attn._fwd(*args.values())

    def compare(self, case, args, outputs):
        expected = reference(args, case.dtype)
        for name, value in expected.items():
            if name in outputs:
                assert_close(name, outputs[name], value, self.dtype_roundings, self.f32_roundings)

    def make(self, case, draw):
        fields = {name: value for name, value in vars(case).items() if name in ARGUMENTS}
        batch, seqlen_q, seqlen_k = case.batch, case.seqlen_q, case.seqlen_k
        heads, heads_k = case.heads
        dim, dim_v = case.dims if isinstance(case.dims, tuple) else (case.dims, case.dims)
        args = dict.fromkeys(ARGUMENTS) | DEFAULTS | fields
        if getattr(case, "ragged_q", False):
            q_lengths = lengths(draw, 0, seqlen_q, batch)
            args["cu_seqlens_q"], args["max_seqlen_q"] = starts(q_lengths), seqlen_q
            args["q"] = draw.normal((int(q_lengths.sum()), heads, dim), case.dtype)
        else:
            args["q"] = draw.normal((batch, seqlen_q, heads, dim), case.dtype)
        page_size = getattr(case, "page_size", 0)
        new = getattr(case, "new", 0)
        if getattr(case, "ragged_k", False):
            k_lengths = lengths(draw, 0, seqlen_k, batch)
            args["cu_seqlens_k"], args["max_seqlen_k"] = starts(k_lengths), seqlen_k
            layout = (int(k_lengths.sum()),)
        elif page_size:
            columns = -(-(seqlen_k + new) // page_size)
            args["page_table"] = draw.permutation(batch * columns + 3)[: batch * columns].view(batch, columns)
            args["seqused_k"] = lengths(draw, getattr(case, "least_k", 0), seqlen_k, batch)
            layout = (batch * columns + 3, page_size)
        else:
            layout = (batch, seqlen_k + new)
            if new or getattr(case, "used", False):
                args["seqused_k"] = lengths(draw, getattr(case, "least_k", 0), seqlen_k, batch)
        args["k"] = draw.normal((*layout, heads_k, dim), case.dtype)
        args["v"] = draw.normal((*layout, heads_k, dim_v), case.dtype)
        if new:
            shape = (batch, new, heads_k)
            if getattr(case, "ragged_new", False):
                new_lengths = lengths(draw, 0, new, batch)
                args["cu_seqlens_k_new"] = starts(new_lengths)
                shape = (int(new_lengths.sum()), heads_k)
            args["k_new"] = draw.normal((*shape, dim), case.dtype)
            args["v_new"] = draw.normal((*shape, dim_v), case.dtype)
        if getattr(case, "rotary_dim", 0):
            angles = draw.uniform((seqlen_k + new + seqlen_q, case.rotary_dim // 2), F32, 0, 6.3)
            args["rotary_cos"], args["rotary_sin"] = angles.cos().to(case.dtype), angles.sin().to(case.dtype)
        if getattr(case, "permuted", False):
            args["kv_batch_idx"] = draw.permutation(batch)
        if getattr(case, "leftpad", 0):
            args["leftpad_k"] = draw.integers(0, case.leftpad + 1, (batch,))
        if getattr(case, "with_sinks", False):
            args["sinks"] = draw.normal((heads,), BF16 if case.dtype == F8 else case.dtype, std=2.0)
        if getattr(case, "over_values", False):
            args["q_v"] = draw.normal((*args["q"].shape[:-1], dim_v), case.dtype)
        if getattr(case, "scaled", False):
            args["q_descale"] = draw.uniform((1, 1), F32, 0.5, 1.5).expand(batch, heads_k)
            args["k_descale"] = draw.uniform((heads_k, batch), F32, 0.5, 1.5).T
            args["v_descale"] = draw.uniform((batch, heads_k), F32, 0.1, 9.0)
        return args


def window(left, right=-1):
    return {"window_size_left": left, "window_size_right": right}


def of_450_keys(num_splits):
    """Sequences long enough that no split is without keys: its part of the scratch results would not be written."""
    return {"num_splits": num_splits, "least_k": 450}


class DenseAttention(Attention):
    """Each sequence in its own row: rows are independent."""

    batch = {"q": 0, "k": 0, "v": 0, "result0": 0, "result1": 0, "result2": 1, "result3": 1}
    cases = [
        case(dtype=BF16, batch=3, seqlen_q=5, seqlen_k=70, heads=(6, 2), dims=64, is_causal=True),
        case(dtype=F16, batch=2, seqlen_q=1, seqlen_k=300, heads=(9, 3), dims=64),
        case(dtype=BF16, batch=2, seqlen_q=130, seqlen_k=200, heads=(4, 4), dims=128, is_causal=True),
        case(dtype=F16, batch=2, seqlen_q=65, seqlen_k=64, heads=(4, 1), dims=96, is_causal=True),
        case(dtype=BF16, batch=1, seqlen_q=1, seqlen_k=1000, heads=(64, 4), dims=128, num_splits=4),
        case(dtype=BF16, batch=2, seqlen_q=40, seqlen_k=333, heads=(4, 2), dims=128, num_splits=3, is_causal=True),
        case(dtype=BF16, batch=1, seqlen_q=77, seqlen_k=91, heads=(2, 1), dims=256),
        case(dtype=F16, batch=1, seqlen_q=2, seqlen_k=91, heads=(5, 1), dims=256, is_causal=True),
        case(dtype=BF16, batch=1, seqlen_q=50, seqlen_k=91, heads=(4, 2), dims=(192, 128), is_causal=True),
        case(dtype=BF16, batch=1, seqlen_q=1, seqlen_k=191, heads=(4, 2), dims=(192, 128)),
        case(dtype=BF16, batch=1, seqlen_q=30, seqlen_k=50, heads=(2, 2), dims=(72, 40), softmax_scale=0.3),
        case(dtype=BF16, batch=2, seqlen_q=3, seqlen_k=50, heads=(2, 2), dims=(8, 136)),
        case(dtype=BF16, batch=2, seqlen_q=20, seqlen_k=0, heads=(4, 2), dims=64),
        case(dtype=BF16, batch=2, seqlen_q=2, seqlen_k=0, heads=(4, 2), dims=64, with_sinks=True),
        case(dtype=BF16, batch=2, seqlen_q=60, seqlen_k=90, heads=(4, 2), dims=64, with_sinks=True, softcap=5.0),
        case(dtype=F16, batch=2, seqlen_q=3, seqlen_k=90, heads=(4, 2), dims=128, with_sinks=True, softcap=3.0),
        case(dtype=F16, batch=1, seqlen_q=1, seqlen_k=700, heads=(8, 1), dims=64, with_sinks=True, num_splits=4),
        case(dtype=BF16, batch=2, seqlen_q=100, seqlen_k=200, heads=(4, 2), dims=64, is_causal=True, **window(30)),
        case(dtype=F16, batch=2, seqlen_q=80, seqlen_k=150, heads=(2, 2), dims=64, **window(9, 4)),
        case(dtype=F16, batch=2, seqlen_q=4, seqlen_k=900, heads=(4, 2), dims=64, **window(99, 0)),
        case(dtype=F16, batch=2, seqlen_q=80, seqlen_k=50, heads=(2, 2), dims=64, **window(-1, 4)),
        case(dtype=BF16, batch=2, seqlen_q=90, seqlen_k=150, heads=(2, 1), dims=64, attention_chunk=32, is_causal=True),
    ]
    empty = [
        case(dtype=BF16, batch=0, seqlen_q=5, seqlen_k=70, heads=(6, 2), dims=64),
        case(dtype=F16, batch=2, seqlen_q=0, seqlen_k=70, heads=(6, 2), dims=64),
    ]


class CachedAttention(Attention):
    """Caches of pages and of rows, ragged sequences, appended keys."""

    cases = [
        case(dtype=BF16, batch=3, seqlen_q=2, seqlen_k=90, heads=(6, 2), dims=64, page_size=16, is_causal=True),
        case(dtype=F16, batch=3, seqlen_q=1, seqlen_k=200, heads=(4, 1), dims=128, page_size=1),
        case(dtype=BF16, batch=4, seqlen_q=70, seqlen_k=200, heads=(4, 2), dims=128, page_size=7, ragged_q=True),
        case(dtype=BF16, batch=3, seqlen_q=33, seqlen_k=500, heads=(4, 2), dims=64, page_size=64, **of_450_keys(3)),
        case(dtype=F16, batch=3, seqlen_q=1, seqlen_k=500, heads=(4, 2), dims=64, page_size=256, permuted=True),
        case(dtype=F16, batch=4, seqlen_q=66, seqlen_k=99, heads=(4, 2), dims=64, ragged_q=True, ragged_k=True),
        case(
            dtype=BF16, batch=4, seqlen_q=66, seqlen_k=99, heads=(4, 2), dims=128, ragged_q=True, ragged_k=True,
            is_causal=True, with_sinks=True,
        ),
        case(dtype=BF16, batch=3, seqlen_q=1, seqlen_k=99, heads=(4, 2), dims=128, used=True, leftpad=0),
        case(dtype=BF16, batch=3, seqlen_q=2, seqlen_k=99, heads=(4, 2), dims=64, used=True, leftpad=9, least_k=10),
        case(dtype=BF16, batch=3, seqlen_q=4, seqlen_k=60, heads=(4, 2), dims=64, new=4, is_causal=True),
        case(
            dtype=F16, batch=3, seqlen_q=4, seqlen_k=60, heads=(4, 2), dims=64, new=4, page_size=8, rotary_dim=32,
            is_causal=True,
        ),
        case(
            dtype=BF16, batch=3, seqlen_q=3, seqlen_k=60, heads=(4, 2), dims=(64, 128), new=40, rotary_dim=64,
            is_rotary_interleaved=True, ragged_new=True, permuted=True,
        ),
    ]  # fmt: skip
    without = {"row_does_not_depend_on_batch": "rows share the cache"}


fp8, scaled = partial(case, dtype=F8), partial(case, dtype=F8, scaled=True)
over_values = partial(case, over_values=True)


class Fp8Attention(Attention):
    """float8_e4m3fn in, bfloat16 out."""

    bad = [
        *(bad_value(name, torch.ones(3, 6)) for name in ("q_descale", "k_descale", "v_descale")),
        bad_value("v_descale", torch.ones(3)),
        bad_value("q_v", torch.zeros(3, 5, 6, 64, dtype=F8)),
        bad_dtype("k", BF16),
        bad_dtype("v", torch.float8_e5m2),
        bad_dtype("q", F16, names="q|k"),
        bad_value("out", torch.zeros(3, 5, 6, 64, dtype=F16)),
        bad_shape("v", (3, 70, 2, 72)),
    ]
    cases = [
        scaled(batch=3, seqlen_q=5, seqlen_k=70, heads=(6, 2), dims=64, is_causal=True),
        fp8(batch=2, seqlen_q=1, seqlen_k=300, heads=(9, 3), dims=64),
        scaled(batch=2, seqlen_q=130, seqlen_k=200, heads=(4, 4), dims=128, is_causal=True),
        fp8(batch=2, seqlen_q=65, seqlen_k=64, heads=(4, 1), dims=96, is_causal=True),
        scaled(batch=2, seqlen_q=1, seqlen_k=1000, heads=(64, 4), dims=128, num_splits=4),
        scaled(batch=2, seqlen_q=40, seqlen_k=333, heads=(4, 2), dims=128, num_splits=3),
        scaled(batch=1, seqlen_q=77, seqlen_k=91, heads=(2, 1), dims=256),
        fp8(batch=1, seqlen_q=2, seqlen_k=91, heads=(5, 1), dims=256, is_causal=True),
        fp8(batch=1, seqlen_q=50, seqlen_k=91, heads=(4, 2), dims=(192, 128), is_causal=True),
        scaled(batch=1, seqlen_q=1, seqlen_k=191, heads=(4, 2), dims=(192, 128)),
        fp8(batch=2, seqlen_q=3, seqlen_k=50, heads=(2, 2), dims=(16, 144)),
        scaled(batch=2, seqlen_q=60, seqlen_k=90, heads=(4, 2), dims=64, with_sinks=True, softcap=5.0),
        scaled(batch=2, seqlen_q=3, seqlen_k=90, heads=(4, 2), dims=128, with_sinks=True, softcap=3.0),
        fp8(batch=2, seqlen_q=100, seqlen_k=200, heads=(4, 2), dims=64, is_causal=True, **window(30)),
        fp8(batch=2, seqlen_q=4, seqlen_k=900, heads=(4, 2), dims=64, **window(99, 0)),
        fp8(batch=2, seqlen_q=90, seqlen_k=150, heads=(2, 1), dims=64, attention_chunk=32, is_causal=True),
        scaled(batch=3, seqlen_q=2, seqlen_k=90, heads=(6, 2), dims=64, page_size=16, is_causal=True),
        scaled(batch=3, seqlen_q=1, seqlen_k=200, heads=(4, 1), dims=128, page_size=1),
        fp8(batch=4, seqlen_q=70, seqlen_k=200, heads=(4, 2), dims=128, page_size=7, ragged_q=True),
        fp8(batch=3, seqlen_q=33, seqlen_k=500, heads=(4, 2), dims=64, page_size=64, **of_450_keys(3)),
        scaled(
            batch=4, seqlen_q=66, seqlen_k=99, heads=(4, 2), dims=128, ragged_q=True, ragged_k=True, with_sinks=True
        ),
        fp8(batch=3, seqlen_q=2, seqlen_k=99, heads=(4, 2), dims=64, used=True, leftpad=9, least_k=10),
        fp8(batch=3, seqlen_q=4, seqlen_k=60, heads=(4, 2), dims=64, new=4, page_size=8, is_causal=True),
        fp8(
            batch=3, seqlen_q=3, seqlen_k=60, heads=(4, 2), dims=(64, 128), new=40, rotary_dim=64,
            is_rotary_interleaved=True, ragged_new=True, permuted=True, scaled=True,
        ),
    ]  # fmt: skip
    empty = [fp8(batch=2, seqlen_q=0, seqlen_k=70, heads=(6, 2), dims=64)]


class WideValues(Attention):
    """Values wider than queries, and queries over them (MLA)."""

    bad = [
        bad_dtype("q_v", F16),
        bad_shape("q_v", (3, 2, 16, 64)),
        bad_shape("q_v", (3, 1, 16, 512)),
        bad_shape("v", (3, 90, 1, 520)),
        bad_value("q", torch.zeros(3, 2, 16, 72, dtype=BF16), names="q|k"),
    ]
    cases = [
        over_values(dtype=BF16, batch=3, seqlen_q=2, seqlen_k=90, heads=(16, 1), dims=(64, 512), is_causal=True),
        over_values(dtype=F16, batch=2, seqlen_q=1, seqlen_k=300, heads=(128, 1), dims=(64, 512)),
        over_values(dtype=BF16, batch=2, seqlen_q=70, seqlen_k=130, heads=(4, 2), dims=(64, 512), is_causal=True),
        over_values(dtype=BF16, batch=2, seqlen_q=1, seqlen_k=1000, heads=(16, 1), dims=(64, 512), num_splits=5),
        over_values(dtype=F16, batch=2, seqlen_q=9, seqlen_k=333, heads=(8, 1), dims=(64, 256), num_splits=3),
        over_values(dtype=F16, batch=2, seqlen_q=5, seqlen_k=77, heads=(3, 1), dims=(40, 264)),
        over_values(dtype=BF16, batch=2, seqlen_q=33, seqlen_k=90, heads=(2, 1), dims=(8, 16), softmax_scale=0.2),
        over_values(
            dtype=BF16, batch=2, seqlen_q=3, seqlen_k=90, heads=(16, 1), dims=(64, 512), with_sinks=True, softcap=5.0
        ),
        over_values(dtype=F16, batch=2, seqlen_q=40, seqlen_k=200, heads=(4, 1), dims=(64, 512), **window(30, 2)),
        over_values(dtype=F16, batch=2, seqlen_q=2, seqlen_k=0, heads=(4, 1), dims=(64, 512)),
        over_values(
            dtype=BF16, batch=3, seqlen_q=1, seqlen_k=200, heads=(16, 1), dims=(64, 512), page_size=1, permuted=True
        ),
        over_values(
            dtype=BF16, batch=4, seqlen_q=30, seqlen_k=200, heads=(8, 1), dims=(64, 512), page_size=64, ragged_q=True,
            is_causal=True,
        ),
        over_values(dtype=F16, batch=3, seqlen_q=9, seqlen_k=9, heads=(4, 1), dims=(64, 512), used=True, ragged_q=True),
        over_values(
            dtype=BF16, batch=3, seqlen_q=4, seqlen_k=60, heads=(8, 1), dims=(64, 512), new=4, page_size=8,
            rotary_dim=32, is_causal=True,
        ),
        case(dtype=BF16, batch=2, seqlen_q=1, seqlen_k=300, heads=(8, 2), dims=(64, 512), num_splits=2),
        case(dtype=F16, batch=2, seqlen_q=50, seqlen_k=99, heads=(4, 2), dims=(48, 400), is_causal=True),
    ]  # fmt: skip


test_attention = operator_tests(
    DenseAttention(name="fwd"), CachedAttention(name="fwd"), Fp8Attention(name="fwd"), WideValues(name="fwd")
)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.mark.parametrize("device", DEVICES)
def test_float32_on_the_cpu_alone(device):
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    q, k, v = (torch.randn(2, n, h, 40, device=device) for n, h in ((9, 6), (50, 3), (50, 3)))
    if device == "cuda":
        with pytest.raises(ValueError, match=r"fwd: q has dtype float32"):
            flash_attn_with_kvcache(q, k, v)
        return
    args = dict.fromkeys(ARGUMENTS) | DEFAULTS | {"q": q.double(), "k": k.double(), "v": v.double(), "is_causal": True}
    out, lse, *_ = flash_attn_with_kvcache(q, k, v, causal=True, return_softmax_lse=True)
    expected = reference(args, F32)
    assert_close("out", out, expected["result0"])
    assert_close("lse", lse, expected["result1"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seqlen_q", [1, 100])
def test_nan_behind_the_last_key_does_not_leak(device, seqlen_q):
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    q = torch.randn(2, seqlen_q, 4, 64, dtype=BF16, device=device)
    k, v = (torch.randn(2, 160, 2, 64, dtype=BF16, device=device) for _ in range(2))
    used = torch.tensor([120, 7], dtype=torch.int32, device=device)
    expected = flash_attn_with_kvcache(q, k, v, cache_seqlens=used)
    for row, length in enumerate(used.tolist()):
        k[row, length:], v[row, length:] = math.nan, math.nan
    assert torch.equal(flash_attn_with_kvcache(q, k, v, cache_seqlens=used), expected)
    # What a window hides from every query of a call is not looked at either.
    hidden = flash_attn_with_kvcache(q, k, v, cache_seqlens=used, window_size=(4, 0))
    first = max(120 - seqlen_q - 4, 0)
    k[0, :first], v[0, :first] = math.nan, math.nan
    assert torch.equal(flash_attn_with_kvcache(q, k, v, cache_seqlens=used, window_size=(4, 0)), hidden)


@pytest.mark.parametrize("device", DEVICES)
def test_splits_agree(device):
    """Any number of splits is right; on the CPU all have the same bits."""
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    q = torch.randn(2, 2, 8, 128, dtype=F16, device=device)
    k, v = (torch.randn(2, 1100, 2, 128, dtype=F16, device=device) for _ in range(2))
    used = torch.tensor([1100, 65], dtype=torch.int32, device=device)
    whole, whole_lse, *_ = flash_attn_with_kvcache(q, k, v, cache_seqlens=used, num_splits=1, return_softmax_lse=True)
    for num_splits in (0, 2, 4, 7, 8, 16, 18, 48, 256):
        out, lse, *_ = flash_attn_with_kvcache(
            q, k, v, cache_seqlens=used, num_splits=num_splits, return_softmax_lse=True
        )
        torch.testing.assert_close(out, whole, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(lse, whole_lse, atol=1e-5, rtol=1e-5)
        one, *_ = flash_attn_with_kvcache(
            q[1:], k[1:], v[1:], cache_seqlens=used[1:], num_splits=max(num_splits, 1), return_softmax_lse=True
        )
        if num_splits > 0:
            assert torch.equal(one, out[1:])


@pytest.mark.cuda
@pytest.mark.parametrize("head_dim", [64, 128, 192, 256])
@pytest.mark.parametrize("num_splits", [2, 8, 16, 32])
def test_splits_without_keys(num_splits, head_dim):
    """Sequences of no key and of fewer tiles than splits, sinks, NaN behind the keys; the bits of every replay."""
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    used = torch.tensor([0, 1, 63, 64, 700, 1024], dtype=torch.int32, device="cuda")
    batch, page_size, pages = len(used), 16, 64
    q = torch.randn(batch, 1, 15, head_dim, dtype=BF16, device="cuda")
    k = torch.randn(batch * pages, page_size, 3, head_dim, dtype=BF16, device="cuda")
    v = torch.randn(batch * pages, page_size, 3, min(head_dim, 128), dtype=BF16, device="cuda")
    table = torch.randperm(batch * pages, device="cuda").to(torch.int32).view(batch, pages)
    sinks = torch.randn(15, device="cuda")

    def attend(splits, sinks=None):
        return flash_attn_with_kvcache(
            q, k, v, cache_seqlens=used, page_table=table, num_splits=splits, sinks=sinks, return_softmax_lse=True
        )[:2]

    for given in (None, sinks):
        for split, whole in zip(attend(num_splits, given), attend(1, given), strict=True):
            torch.testing.assert_close(split, whole, atol=2e-2 if split.dtype == BF16 else 1e-5, rtol=1e-2)
    out, lse = attend(num_splits)
    assert not out[0].any() and torch.isneginf(lse[0]).all()
    for row, length in enumerate(used.tolist()):
        slots = (table[row].long()[:, None] * page_size + torch.arange(page_size, device="cuda")).flatten()
        k.view(-1, *k.shape[2:])[slots[length:]] = math.nan
        v.view(-1, *v.shape[2:])[slots[length:]] = math.nan
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attend(num_splits)
    for _ in range(5):
        graph.replay()
        assert torch.equal(captured[0], out) and torch.equal(captured[1], lse)


@pytest.mark.parametrize("device", DEVICES)
def test_unused_rows_are_not_written(device):
    from sgl_kernel.flash_attn import flash_attn_varlen_func

    q, k, v = (torch.randn(20, 2, 64, dtype=BF16, device=device) for _ in range(3))
    starts_of = torch.tensor([0, 12, 20], dtype=torch.int32, device=device)
    used = torch.tensor([5, 8], dtype=torch.int32, device=device)
    out = flash_attn_varlen_func(q, k, v, starts_of, starts_of, seqused_q=used, seqused_k=used)
    for first, count in ((0, 5), (12, 8)):
        alone = slice(first, first + count)
        ends = torch.tensor([0, count], dtype=torch.int32, device=device)
        expected = flash_attn_varlen_func(q[alone], k[alone], v[alone], ends, ends)
        torch.testing.assert_close(out[alone], expected)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_built_says_so(device):
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    q, k = (torch.randn(1, 2, 2, 64, device=device, dtype=BF16) for _ in range(2))
    with pytest.raises(NotImplementedError, match="score_mod"):
        flash_attn_with_kvcache(q, k, k, score_mod=lambda x: x)
    with pytest.raises(NotImplementedError, match="aux_tensors"):
        flash_attn_with_kvcache(q, k, k, aux_tensors=[q], ver=4)


@pytest.mark.parametrize("device", DEVICES)
def test_default_scale_counts_the_queries_over_values(device):
    """Of flash_attn_with_kvcache, as upstream's; fwd's is by q alone."""
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    q, k = (torch.randn(1, 2, 4, 64, dtype=BF16, device=device) for _ in range(2))
    qv, v = (torch.randn(1, 2, 4, 512, dtype=BF16, device=device) for _ in range(2))
    expected = flash_attn_with_kvcache(q, k, v, qv=qv, softmax_scale=(64 + 512) ** -0.5)
    assert torch.equal(flash_attn_with_kvcache(q, k, v, qv=qv), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seqlen_q", [1, 100])
def test_fp8_keeps_nan_where_it_is_seen(device, seqlen_q):
    """A NaN behind the last key changes nothing, one among the keys makes its rows NaN."""
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    q = torch.randn(2, seqlen_q, 4, 64, device=device).to(F8)
    k, v = (torch.randn(2, 160, 2, 64, device=device).to(F8) for _ in range(2))
    used = torch.tensor([120, 7], dtype=torch.int32, device=device)
    expected = flash_attn_with_kvcache(q, k, v, cache_seqlens=used)
    assert expected.dtype == BF16 and not expected.isnan().any()
    for row, length in enumerate(used.tolist()):
        k.view(torch.uint8)[row, length:], v.view(torch.uint8)[row, length:] = 0x7F, 0xFF
    assert torch.equal(flash_attn_with_kvcache(q, k, v, cache_seqlens=used), expected)
    v.view(torch.uint8)[0, 50, 0, 3] = 0x7F
    seen = flash_attn_with_kvcache(q, k, v, cache_seqlens=used)
    assert seen[0, :, :2, 3].isnan().all()
    seen[0, :, :2, 3] = expected[0, :, :2, 3]
    assert torch.equal(seen, expected)


@pytest.mark.cuda
@pytest.mark.large
@pytest.mark.parametrize("seqlen_q", [1, 100])
def test_pages_beyond_32_bits(seqlen_q):
    """Pages at the end of a cache of more than 2^31 elements read as those at its beginning."""
    from sgl_kernel.flash_attn import flash_attn_with_kvcache

    page_size, heads_k, dim = 16, 2, 128
    pages = 2**31 // (page_size * heads_k * dim) + 8
    try:
        k, v = (torch.zeros(pages, page_size, heads_k, dim, dtype=BF16, device="cuda") for _ in range(2))
    except torch.OutOfMemoryError:
        pytest.skip("not enough memory for two caches of 4 GiB")
    for cache in (k, v):
        cache[:8].normal_()
        cache[-8:] = cache[:8]
    q = torch.randn(1, seqlen_q, 4, dim, dtype=BF16, device="cuda")
    low = torch.arange(8, dtype=torch.int32, device="cuda")[None]
    used = torch.tensor([120], dtype=torch.int32, device="cuda")
    results = [
        flash_attn_with_kvcache(q, k, v, cache_seqlens=used, page_table=table, causal=True)
        for table in (low, low + pages - 8)
    ]
    assert torch.equal(*results)
