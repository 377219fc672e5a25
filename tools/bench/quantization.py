"""GGUF weights: products with the QKV projection of Qwen3-VL-235B-A22B (9216x4096), an expert's (1536x4096) and the
matrices of SmolLM2-135M, which the main job runs; and decoding.
"""

import importlib
from types import SimpleNamespace as Inputs

import torch

from tools.bench.benchmark import Benchmark, Libraries, has

# Name → ggml's number, elements and bytes of a block.
TYPES = {"Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}
SHAPES = [(9216, 4096), (1536, 4096)]
SMOLLM_LAYER = [(576, 576), (960, 576), (3072, 576), (576, 1536)]
SMOLLM_LOGITS = (49152, 576)


def benchmarks(of: Libraries):
    for type in TYPES:
        for row, k in SHAPES:
            yield product(of, "ggml_mul_mat_vec_a8", type, 1, row, k)
    for type, shapes in (("Q4_1", SMOLLM_LAYER), ("Q8_0", [*SMOLLM_LAYER, SMOLLM_LOGITS])):
        for row, k in shapes:
            for tokens in (1, 8):
                yield product(of, "ggml_mul_mat_vec_a8", type, tokens, row, k)
    for tokens in (1, 8):
        for row, k in ((960, 576), (3072, 576)):
            yield add_rmsnorm_product(of, "Q4_1", tokens, row, k)
        yield silu_and_mul_product(of, "Q4_1", tokens, 576, 1536)
    for type in TYPES:
        yield dequantize(of, type, 8192, 8192)
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


def add_rmsnorm_product(of, type, tokens, row, k):
    number, elements, size = TYPES[type]
    row_bytes = k // elements * size
    ours, name = of.kernels, "add_rmsnorm_ggml_mul_mat_vec_a8"

    def make():
        weight = torch.randint(256, (row, row_bytes), dtype=torch.uint8) & 0xBF
        x, residual = torch.randn(2, tokens, k, dtype=torch.bfloat16)
        return Inputs(weight=weight, x=x, residual=residual, norm=torch.ones(k, dtype=torch.bfloat16))

    def in_turn(s):
        ours.fused_add_rmsnorm(s.x, s.residual, s.norm, 1e-5)
        return ours.ggml_mul_mat_vec_a8(s.weight, s.x, number, row)

    return Benchmark(
        f"{name} {type}",
        f"{tokens}x{row}x{k}",
        make,
        bytes=row * row_bytes + 2 * tokens * (3 * k + row) + 2 * k,
        flops=2 * tokens * row * k,
        implementations=of.implementations(
            kernels=(lambda s: getattr(ours, name)(s.weight, s.x, s.residual, s.norm, 1e-5, number, row))
            if has(ours, name)
            else None,
            kernels_in_turn=in_turn if has(ours, name) else None,
        ),
    )


def silu_and_mul_product(of, type, tokens, row, k):
    number, elements, size = TYPES[type]
    row_bytes = k // elements * size
    ours, name = of.kernels, "silu_and_mul_ggml_mul_mat_vec_a8"

    def make():
        weight = torch.randint(256, (row, row_bytes), dtype=torch.uint8) & 0xBF
        return Inputs(weight=weight, x=torch.randn(tokens, 2 * k, dtype=torch.bfloat16))

    return Benchmark(
        f"{name} {type}",
        f"{tokens}x{row}x{k}",
        make,
        bytes=row * row_bytes + 2 * tokens * (2 * k + row),
        flops=2 * tokens * row * k,
        implementations=of.implementations(
            kernels=(lambda s: getattr(ours, name)(s.weight, s.x, number, row)) if has(ours, name) else None,
            kernels_in_turn=(lambda s: ours.ggml_mul_mat_vec_a8(s.weight, ours.silu_and_mul(s.x), number, row))
            if has(ours, name)
            else None,
        ),
    )


def dequantize(of, type, row, k):
    number, elements, size = TYPES[type]
    row_bytes = k // elements * size

    def make():
        return Inputs(weight=torch.randint(256, (row, row_bytes), dtype=torch.uint8) & 0xBF)

    try:
        decode = importlib.import_module(of.kernels.__name__ + ".quantization").ggml_dequantize
    except (AttributeError, ImportError):
        decode = None
    return Benchmark(
        f"ggml_dequantize {type}",
        f"{row}x{k}",
        make,
        bytes=row * (row_bytes + 2 * k),
        implementations=of.implementations(
            kernels=decode and (lambda s: decode(s.weight, number, row, k, torch.bfloat16)),
        ),
    )
