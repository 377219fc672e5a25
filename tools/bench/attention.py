"""Attention of 64 query and 4 key-value heads of 128, bfloat16: paged decode, causal prefill, and what is around them:
merged states, rows written to a cache.
"""

import importlib
from types import SimpleNamespace as Inputs

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tools.bench.benchmark import Benchmark, Libraries

BF16 = torch.bfloat16
HEADS, KV_HEADS, HEAD_DIM = 64, 4, 128
DECODE = [(1, 8192), (16, 8192), (128, 4096), (1, 131072)]  # batch, length
PREFILL = [1024, 8192, 32768]


def benchmarks(of: Libraries):
    for batch, length in DECODE:
        for page_size in (16, 64):
            yield decode(of, batch, length, page_size)
    for length in PREFILL:
        yield prefill(of, length)
    for tokens in (1, 128, 1024, 8192):
        yield merge_state(of, tokens)
    for tokens in (1, 128, 16384, 65536):
        yield store_kv_cache(of, tokens)


def flash_attn(of: Libraries, name: str):
    try:
        return getattr(importlib.import_module(of.kernels.__name__ + ".flash_attn"), name, None)
    except (AttributeError, ImportError):
        return None


def decode(of, batch, length, page_size):
    pages = batch * length // page_size

    def make():
        order = torch.randperm(pages, generator=torch.Generator(torch.get_default_device()).manual_seed(0))
        return Inputs(
            q=torch.randn(batch, 1, HEADS, HEAD_DIM, dtype=BF16),
            k=torch.randn(pages, page_size, KV_HEADS, HEAD_DIM, dtype=BF16),
            v=torch.randn(pages, page_size, KV_HEADS, HEAD_DIM, dtype=BF16),
            page_table=order.to(torch.int32).view(batch, -1),
            lengths=torch.full((batch,), length, dtype=torch.int32),
        )

    with_kvcache = flash_attn(of, "flash_attn_with_kvcache")
    planned = {}

    def by_flashinfer(s):
        if not planned:  # every set of inputs has the same page table
            workspace = torch.empty(2**28, dtype=torch.uint8)
            wrapper = of.flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
            indptr = torch.arange(batch + 1, dtype=torch.int32) * (length // page_size)
            last = torch.full((batch,), page_size, dtype=torch.int32)
            wrapper.plan(
                indptr,
                s.page_table.flatten(),
                last,
                HEADS,
                KV_HEADS,
                HEAD_DIM,
                page_size,
                q_data_type=BF16,
                kv_data_type=BF16,
            )
            planned["wrapper"] = wrapper
        return planned["wrapper"].run(s.q[:, 0], (s.k, s.v))

    return Benchmark(
        "paged decode",
        f"b{batch} L{length} page {page_size}",
        make,
        bytes=2 * 2 * batch * (length * KV_HEADS + HEADS) * HEAD_DIM,
        flops=4 * batch * length * HEADS * HEAD_DIM,
        implementations=of.implementations(
            kernels=with_kvcache
            and (lambda s: with_kvcache(s.q, s.k, s.v, cache_seqlens=s.lengths, page_table=s.page_table, causal=True)),
            flashinfer=by_flashinfer,
        ),
    )


def prefill(of, length):
    def make():
        return Inputs(
            q=torch.randn(length, HEADS, HEAD_DIM, dtype=BF16),
            k=torch.randn(length, KV_HEADS, HEAD_DIM, dtype=BF16),
            v=torch.randn(length, KV_HEADS, HEAD_DIM, dtype=BF16),
            starts=torch.tensor([0, length], dtype=torch.int32),
        )

    varlen = flash_attn(of, "flash_attn_varlen_func")

    def by_torch(backend):
        def run(s):
            q, k, v = (x.transpose(0, 1)[None] for x in (s.q, s.k, s.v))
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        return run

    return Benchmark(
        "causal prefill",
        f"L{length}",
        make,
        bytes=2 * 2 * length * (HEADS + KV_HEADS) * HEAD_DIM,
        flops=4 * length * length * HEADS * HEAD_DIM // 2,
        implementations=of.implementations(
            kernels=varlen and (lambda s: varlen(s.q, s.k, s.v, s.starts, s.starts, length, length, causal=True)),
            flashinfer_fa3=lambda s: of.flashinfer.single_prefill_with_kv_cache(
                s.q, s.k, s.v, causal=True, backend="fa3"
            ),
            torch_cudnn=by_torch(SDPBackend.CUDNN_ATTENTION) if of.device == "cuda" else None,
            torch_flash=by_torch(SDPBackend.FLASH_ATTENTION),
        ),
    )


def merge_state(of, tokens, heads=16):
    def make():
        v_a, v_b = (torch.randn(tokens, heads, HEAD_DIM, dtype=BF16) for _ in range(2))
        s_a, s_b = (torch.randn(tokens, heads) for _ in range(2))
        return Inputs(v_a=v_a, s_a=s_a, v_b=v_b, s_b=s_b, v=torch.empty_like(v_a), s=torch.empty_like(s_a))

    merge = getattr(of.kernels, "merge_state_v2", None)
    return Benchmark(
        "merge_state_v2",
        f"{tokens}x{heads}x{HEAD_DIM}",
        make,
        bytes=3 * tokens * heads * (2 * HEAD_DIM + 4),
        implementations=of.implementations(kernels=merge and (lambda s: merge(s.v_a, s.s_a, s.v_b, s.s_b, s.v, s.s))),
    )


def store_kv_cache(of, tokens):
    def make():
        row = KV_HEADS * HEAD_DIM
        return Inputs(
            k_cache=torch.zeros(2 * tokens, row, dtype=BF16),
            v_cache=torch.zeros(2 * tokens, row, dtype=BF16),
            slots=torch.randperm(2 * tokens)[:tokens],
            k=torch.randn(tokens, row, dtype=BF16),
            v=torch.randn(tokens, row, dtype=BF16),
        )

    store = getattr(of.kernels, "store_kv_cache", None)
    return Benchmark(
        "store_kv_cache",
        f"{tokens}x({KV_HEADS}+{KV_HEADS})x{HEAD_DIM}",
        make,
        bytes=tokens * (4 * 2 * KV_HEADS * HEAD_DIM + 8),
        implementations=of.implementations(
            kernels=store and (lambda s: store(s.k_cache, s.v_cache, s.slots, s.k, s.v))
        ),
    )
