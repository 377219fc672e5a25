"""Attention of 64 query and 4 key-value heads of 128, bfloat16: paged decode, causal prefill."""

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
            torch_cudnn=by_torch(SDPBackend.CUDNN_ATTENTION) if torch.get_default_device().type == "cuda" else None,
            torch_flash=by_torch(SDPBackend.FLASH_ATTENTION),
        ),
    )
