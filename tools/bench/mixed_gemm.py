"""Products with weights of 4 and 8 bits: the shapes of tools/bench/gemm.py, next to torch's with a bf16 weight."""

from types import SimpleNamespace as Inputs

import torch

from tools.bench.benchmark import Benchmark, Libraries
from tools.bench.gemm import DEEPSEEK_V3, QWEN3_VL, ROWS

GROUP = 128
LOCKS = 1024  # int32, as many as upstream may want


def benchmarks(of: Libraries):
    for shape in QWEN3_VL + DEEPSEEK_V3:
        for m in ROWS:
            for type in ("uint4b8", "uint8b128"):
                yield marlin(of, type, m, *shape)
            if m <= 64:  # beyond, servers do not use it
                yield gptq(of, m, *shape)


def random_words(rows, columns):
    return torch.randint(-(2**31), 2**31, (rows, columns), dtype=torch.int32)


def marlin(of, type, m, n, k):
    bits = 8 if type == "uint8b128" else 4

    def make():
        return Inputs(
            a=torch.randn(m, k, dtype=torch.bfloat16),
            weight=random_words(k // 16, n * bits // 2),
            scales=torch.rand(k // GROUP, n).bfloat16() * 0.01,
            locks=torch.zeros(LOCKS, dtype=torch.int32),
            wide=torch.randn(k, n, dtype=torch.bfloat16),
        )

    multiply = getattr(of.kernels, "gptq_marlin_gemm", None)

    def call(s):
        from sgl_kernel.scalar_type import scalar_types

        return multiply(
            s.a, None, s.weight, s.scales, None, None, None, None, s.locks, getattr(scalar_types, type), m, n, k,
            use_fp32_reduce=True,
        )  # fmt: skip

    return Benchmark(
        f"gptq_marlin_gemm {type}",
        f"{m}x{n}x{k}",
        make,
        bytes=n * k * bits // 8 + 2 * (n * k // GROUP + m * k + m * n),
        flops=2 * m * n * k,
        implementations=of.implementations(kernels=multiply and call, torch=lambda s: torch.mm(s.a, s.wide)),
    )


def gptq(of, m, n, k):
    bits = 4

    def make():
        return Inputs(
            a=torch.randn(m, k, dtype=torch.float16),
            weight=random_words(k * bits // 32, n),
            zeros=random_words(k // GROUP, n * bits // 32),
            scales=torch.rand(k // GROUP, n).half() * 0.01,
            order=torch.empty(0, dtype=torch.int32),
        )

    multiply = getattr(of.kernels, "gptq_gemm", None)
    return Benchmark(
        "gptq_gemm 4-bit",
        f"{m}x{n}x{k}",
        make,
        bytes=n * k * bits // 8 + 2 * (n * k // GROUP + m * k + m * n),
        flops=2 * m * n * k,
        implementations=of.implementations(
            kernels=multiply and (lambda s: multiply(s.a, s.weight, s.zeros, s.scales, s.order, True, bits))
        ),
    )
