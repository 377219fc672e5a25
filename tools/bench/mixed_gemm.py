"""Products with weights of 4 and 8 bits: the shapes of tools/bench/gemm.py, next to torch's with a bf16 weight.

No peer has FP4 products on Hopper.
"""

from types import SimpleNamespace as Inputs

import torch

from tools.bench.benchmark import Benchmark, Libraries
from tools.bench.gemm import DEEPSEEK_V3, FP8, QWEN3_VL, ROWS

GROUP = 128
LOCKS = 1024  # int32, as many as upstream may want


def benchmarks(of: Libraries):
    for shape in QWEN3_VL + DEEPSEEK_V3:
        for m in ROWS:
            for type in ("uint4b8", "uint8b128"):
                yield marlin(of, type, m, *shape)
            if m <= 64:  # beyond, servers do not use it
                yield gptq(of, m, *shape)
            for name in ("qserve_w4a8_per_chn_gemm", "qserve_w4a8_per_group_gemm"):
                yield qserve(of, name, m, *shape)
            yield fp4(of, m, *shape)


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
        implementations=of.implementations(kernels=multiply and call, torch_bf16=lambda s: torch.mm(s.a, s.wide)),
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


def qserve(of, name, m, n, k):
    per_group = name == "qserve_w4a8_per_group_gemm"
    f16 = torch.float16

    def random_int8(rows, columns):
        return torch.randint(-128, 128, (rows, columns), dtype=torch.int8)

    def make():
        scales = torch.rand(n, dtype=f16) * 0.01
        groups = [random_int8(k // GROUP, n) for _ in range(2)]
        return Inputs(
            rows=random_int8(m, k),
            weight=random_int8(n, k // 2),
            scales_a=torch.rand(m, dtype=f16) * 0.01,
            scales_b=scales,
            zeros=groups[0] if per_group else scales * 8,
            group_scales=groups[1] if per_group else torch.empty(0),
            sums=torch.randn(m, dtype=f16),
        )

    multiply = getattr(of.kernels, name, None)

    def call(s):
        if per_group:
            return multiply(s.rows, s.weight, s.zeros, s.group_scales, s.scales_b, s.scales_a)
        return multiply(s.rows, s.weight, s.scales_b, s.scales_a, s.zeros, s.sums)

    return Benchmark(
        name,
        f"{m}x{n}x{k}",
        make,
        bytes=n * k // 2 + m * k + 2 * m * n + (2 * n * k // GROUP if per_group else 0),
        flops=2 * m * n * k,
        implementations=of.implementations(kernels=multiply and call),
    )


def fp4(of, m, n, k):
    def scales(rows):  # as scaled_fp4_quant lays them out: multiples of 128 rows by 4 blocks of 16
        return (torch.rand(-(-rows // 128) * 128, -(-k // 64) * 4) * 4 + 0.5).to(FP8)

    def make():
        return Inputs(
            a=torch.randint(256, (m, k // 2), dtype=torch.uint8),
            b=torch.randint(256, (n, k // 2), dtype=torch.uint8),
            scales_a=scales(m),
            scales_b=scales(n),
            alpha=torch.ones(1),
        )

    multiply = getattr(of.kernels, "cutlass_scaled_fp4_mm", None)
    return Benchmark(
        "cutlass_scaled_fp4_mm",
        f"{m}x{n}x{k}",
        make,
        bytes=(n + m) * k // 2 + (n + m) * k // 16 + 2 * m * n,
        flops=2 * m * n * k,
        implementations=of.implementations(
            kernels=multiply and (lambda s: multiply(s.a, s.b, s.scales_a, s.scales_b, s.alpha, torch.bfloat16))
        ),
    )
