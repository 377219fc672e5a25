"""Products of 8-bit matrices with scales: the weights of Qwen3-VL-235B-A22B (attention and experts) and of DeepSeek-V3,
next to cuBLASLt as torch._scaled_mm calls it.
"""

from types import SimpleNamespace as Inputs

import torch

from tools.bench.benchmark import Benchmark, Libraries

# N x K.
QWEN3_VL = [(9216, 4096), (4096, 8192), (3072, 4096), (4096, 1536)]
DEEPSEEK_V3 = [(2112, 7168), (24576, 1536), (7168, 16384), (4096, 7168), (7168, 2048)]
ROWS = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
SCALE_BLOCK = 128
FP8 = torch.float8_e4m3fn


def benchmarks(of: Libraries):
    for shape in QWEN3_VL + DEEPSEEK_V3:
        for m in ROWS:
            for name in ("fp8_scaled_mm", "fp8_blockwise_scaled_mm", "int8_scaled_mm"):
                yield product(of, name, m, *shape)


def random_bytes(rows: int, columns: int) -> torch.Tensor:
    """e4m3 numbers of a normal distribution, whose bytes serve as int8, too."""
    return (torch.randn(rows, columns) * 40).to(FP8)


def product(of, name, m, n, k):
    blockwise = name == "fp8_blockwise_scaled_mm"
    dtype = torch.int8 if name == "int8_scaled_mm" else FP8

    def make():
        k_blocks, n_blocks = -(-k // SCALE_BLOCK), -(-n // SCALE_BLOCK)
        return Inputs(
            a=random_bytes(m, k).view(dtype),
            b=random_bytes(n, k).view(dtype).t(),
            # The scales of blocks are column-major.
            scales_a=torch.rand(k_blocks, m).t() if blockwise else torch.rand(m, 1),
            scales_b=torch.rand(n_blocks, k_blocks).t() if blockwise else torch.rand(1, n),
            one=torch.ones(()),
        )

    multiply = getattr(of.kernels, name, None)
    bf16 = torch.bfloat16

    def by_torch(scales):
        if name != "fp8_scaled_mm":
            return None
        return lambda s: torch._scaled_mm(s.a, s.b, *scales(s), out_dtype=bf16, use_fast_accum=True)

    return Benchmark(
        name,
        f"{m}x{n}x{k}",
        make,
        bytes=n * k + m * k + 2 * m * n,
        flops=2 * m * n * k,
        implementations=of.implementations(
            kernels=multiply and (lambda s: multiply(s.a, s.b, s.scales_a, s.scales_b, bf16)),
            torch_rowwise=by_torch(lambda s: (s.scales_a, s.scales_b)),
            torch_tensorwise=by_torch(lambda s: (s.one, s.one)),
        ),
    )
