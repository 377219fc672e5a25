"""Products of bf16 and fp8 matrices that DeepSeek-V3 has: its fused projection to latents, its router, and the batched
products of multi-head latent attention, a head a batch.
"""

from types import SimpleNamespace as Inputs

import torch

from tools.bench.benchmark import Benchmark, Libraries
from tools.bench.gemm import FP8

HIDDEN = 7168
FUSED_A = 2112  # 1536 of queries, 512 of keys and values, 64 of rotary keys
EXPERTS = [256, 384]
HEADS, LATENT, HEAD_DIM = 128, 512, 128
ROWS = [1, 4, 8, 16]
BATCH_ROWS = [1, 16, 128, 1024]
BF16 = torch.bfloat16


def benchmarks(of: Libraries):
    for m in ROWS:
        yield skinny(of, "dsv3_fused_a_gemm", m, FUSED_A)
        for experts in EXPERTS:
            yield skinny(of, "dsv3_router_gemm", m, experts)
    for m in BATCH_ROWS:
        for n, k in ((LATENT, HEAD_DIM), (HEAD_DIM, LATENT)):
            yield batched(of, m, n, k)


def skinny(of, name, m, n):
    k = HIDDEN
    multiply = getattr(of.kernels, name, None)
    transposed = name == "dsv3_fused_a_gemm"  # takes the transpose of the weight as it is stored

    def make():
        return Inputs(a=torch.randn(m, k, dtype=BF16), weight=torch.randn(n, k, dtype=BF16))

    return Benchmark(
        name,
        f"{m}x{n}x{k}",
        make,
        bytes=2 * (n * k + m * k + m * n),
        flops=2 * m * n * k,
        implementations=of.implementations(
            kernels=multiply and (lambda s: multiply(s.a, s.weight.t() if transposed else s.weight)),
            torch_bf16=lambda s: torch.mm(s.a, s.weight.t()),
        ),
    )


def batched(of, m, n, k):
    def make():
        return Inputs(
            a=torch.randn(HEADS, m, k).to(FP8),
            b=torch.randn(HEADS, n, k).to(FP8),
            scale=torch.ones(()),
            wide=torch.randn(HEADS, n, k, dtype=BF16),
            wide_a=torch.randn(HEADS, m, k, dtype=BF16),
        )

    multiply = getattr(of.kernels, "bmm_fp8", None)
    return Benchmark(
        "bmm_fp8",
        f"{HEADS}x{m}x{n}x{k}",
        make,
        bytes=HEADS * (n * k + m * k + 2 * m * n),
        flops=2 * HEADS * m * n * k,
        implementations=of.implementations(
            kernels=multiply and (lambda s: multiply(s.a, s.b.transpose(1, 2), s.scale, s.scale, BF16)),
            torch_bf16=lambda s: torch.bmm(s.wide_a, s.wide.transpose(1, 2)),
        ),
    )
