"""Products with GGUF weights: the QKV projection of Qwen3-VL-235B-A22B (9216x4096) and an expert's (1536x4096)."""

import importlib
from types import SimpleNamespace as Inputs

import torch

from tools.bench.benchmark import Benchmark, Libraries

# Name → ggml's number, elements and bytes of a block.
TYPES = {"Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}
SHAPES = [(9216, 4096), (1536, 4096)]


def benchmarks(of: Libraries):
    for type in TYPES:
        for row, k in SHAPES:
            yield product(of, "ggml_mul_mat_vec_a8", type, 1, row, k)
    for type in ("Q4_0", "Q4_K"):
        for tokens in (16, 128, 1024):
            yield product(of, "ggml_mul_mat_a8", type, tokens, *SHAPES[0])


def product(of, name, type, tokens, row, k):
    number, elements, size = TYPES[type]
    row_bytes = k // elements * size

    def make():
        # Random bytes whose 16-bit floats are below 2, wherever a block has them.
        weight = torch.randint(256, (row, row_bytes), dtype=torch.uint8) & 0xBF
        x = torch.randn(tokens, k, dtype=torch.bfloat16)
        return Inputs(weight=weight, x=x, dense=torch.randn(row, k, dtype=torch.bfloat16))

    try:
        multiply = getattr(importlib.import_module(of.kernels.__name__ + ".quantization"), name)
    except (AttributeError, ImportError):
        multiply = None
    return Benchmark(
        f"{name} {type}",
        f"{tokens}x{row}x{k}",
        make,
        bytes=row * row_bytes + 2 * tokens * (k + row),
        flops=2 * tokens * row * k,
        implementations=of.implementations(
            kernels=multiply and (lambda s: multiply(s.weight, s.x, number, row)),
            torch_bf16=lambda s: torch.mm(s.x, s.dense.t()),
        ),
    )
