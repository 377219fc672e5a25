"""Activations to 8 and 4 bits, in rows of Qwen3-VL-235B-A22B and DeepSeek-V3; AWQ weights; and GGUF weights: products
with the QKV projection of the former (9216x4096), an expert's (1536x4096), a large matrix and those of SmolLM2-135M,
which the main job runs, those of experts, and decoding.
"""

import importlib
from types import SimpleNamespace as Inputs

import torch

from tools.bench.benchmark import Benchmark, Libraries, has

# Name → ggml's number, elements and bytes of a block.
TYPES = {"Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}
SHAPES = [(9216, 4096), (1536, 4096), (28672, 8192)]
SMOLLM_LAYER = [(576, 576), (960, 576), (3072, 576), (576, 1536)]
SMOLLM_LOGITS = (49152, 576)
GATE_AND_UP = (3072, 4096)  # of each of the 128 experts of Qwen3-VL-235B-A22B, of which a token takes 8

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
ACTIVATIONS = [(1, 4096), (16, 4096), (128, 4096), (1024, 4096), (16384, 4096), (16384, 7168)]
FUSED = [(128, 2048), (16384, 2048)]


def benchmarks(of: Libraries):
    for rows, size in ACTIVATIONS:
        yield per_tensor(of, rows, size, is_static=True)
        yield per_tensor(of, rows, size, is_static=False)
        yield per_token(of, rows, size)
        for layout in ("rows", "columns"):
            yield per_group(of, rows, size, layout)
        yield nvfp4(of, rows, size)
    for rows, size in FUSED:
        yield per_group(of, rows, size, "ue8m0", fused=True)
    for rows, size in [(128, 4096), (16384, 4096)]:
        yield per_group(of, rows, size, "rows", to=torch.int8)
    for rows, n in [(4096, 9216), (8192, 28672)]:
        yield awq(of, rows, n)
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
    for type in ("Q4_0", "Q8_0", "Q4_K", "Q6_K"):
        for tokens in (16, 64, 128, 1024):
            yield product(of, "ggml_mul_mat_a8", type, tokens, *SHAPES[0])
    for type in ("Q4_K", "Q8_0"):
        for tokens in (1, 16):
            yield experts_product(of, "ggml_moe_a8_vec", type, tokens, *GATE_AND_UP)
        for tokens in (256, 1024):
            yield experts_product(of, "ggml_moe_a8", type, tokens, *GATE_AND_UP)


def per_tensor(of, rows, size, is_static):
    def make():
        return Inputs(
            x=torch.randn(rows, size, dtype=BF16), q=torch.empty(rows, size, dtype=FP8), s=torch.full((1,), 0.01)
        )

    name = "sgl_per_tensor_quant_fp8"
    quantize = getattr(of.kernels, name) if has(of.kernels, name) else None
    # A scale that has to be found takes reading the tensor twice.
    return Benchmark(
        f"{name} {'static' if is_static else 'dynamic'}",
        f"{rows}x{size}",
        make,
        bytes=rows * size * (3 if is_static else 5),
        implementations=of.implementations(kernels=quantize and (lambda s: quantize(s.x, s.q, s.s, is_static))),
    )


def per_token(of, rows, size):
    def make():
        return Inputs(x=torch.randn(rows, size, dtype=BF16), q=torch.empty(rows, size, dtype=FP8), s=torch.empty(rows))

    name = "sgl_per_token_quant_fp8"
    quantize = getattr(of.kernels, name) if has(of.kernels, name) else None
    return Benchmark(
        name,
        f"{rows}x{size}",
        make,
        bytes=rows * (3 * size + 4),
        implementations=of.implementations(kernels=quantize and (lambda s: quantize(s.x, s.q, s.s))),
    )


def per_group(of, rows, size, layout, to=FP8, fused=False, group=128):
    groups = size // group
    low, high = (-448.0, 448.0) if to == FP8 else (-128.0, 127.0)

    def make():
        if layout == "rows":
            scales = torch.empty(rows, groups)
        elif layout == "columns":
            scales = torch.empty(groups, rows).t()
        else:
            scales = torch.empty((groups + 3) // 4, rows, dtype=torch.int32).t()
        x = torch.randn(rows, (1 + fused) * size, dtype=BF16)
        return Inputs(x=x, q=torch.empty(rows, size, dtype=to), s=scales)

    name = "sgl_per_token_group_quant_8bit"
    quantize = getattr(of.kernels, name) if has(of.kernels, name) else None
    ue8m0 = layout == "ue8m0"

    def call(s):
        quantize(s.x, s.q, s.s, group, 1e-10, low, high, ue8m0, fuse_silu_and_mul=fused, enable_v2=True)

    kind = "fp8" if to == FP8 else "int8"
    return Benchmark(
        f"{name} {kind} {layout}{' silu_and_mul' if fused else ''}",
        f"{rows}x{size}",
        make,
        bytes=rows * (size * (5 if fused else 3) + groups * (1 if ue8m0 else 4)),
        implementations=of.implementations(kernels=quantize and call),
    )


def nvfp4(of, rows, size):
    def make():
        return Inputs(
            x=torch.randn(rows, size, dtype=BF16),
            q=torch.empty(rows, size // 2, dtype=torch.uint8),
            s=torch.empty((rows + 127) // 128 * 128, size // 64, dtype=torch.int32),
            scale=torch.tensor([600.0]),
        )

    quantize = torch.ops.sgl_kernel.scaled_fp4_quant if has(of.kernels, "scaled_fp4_quant") else None
    return Benchmark(
        "scaled_fp4_quant",
        f"{rows}x{size}",
        make,
        bytes=rows * (2 * size + size // 2) + (rows + 127) // 128 * 128 * size // 16,
        implementations=of.implementations(kernels=quantize and (lambda s: quantize(s.q, s.x, s.s, s.scale))),
    )


def awq(of, rows, n, group=128):
    def make():
        return Inputs(
            w=torch.randint(2**31, (rows, n // 8), dtype=torch.int32),
            s=torch.randn(rows // group, n, dtype=torch.float16),
            z=torch.randint(2**31, (rows // group, n // 8), dtype=torch.int32),
        )

    decode = of.kernels.awq_dequantize if has(of.kernels, "awq_dequantize") else None
    return Benchmark(
        "awq_dequantize",
        f"{rows}x{n}",
        make,
        bytes=rows * n * 5 // 2 + rows // group * n * 5 // 2,
        implementations=of.implementations(kernels=decode and (lambda s: decode(s.w, s.s, s.z))),
    )


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


def experts_product(of, name, type, tokens, row, k, experts=128, top_k=8):
    number, elements, size = TYPES[type]
    row_bytes = k // elements * size

    def make():
        weight = torch.randint(256, (experts, row, row_bytes), dtype=torch.uint8) & 0xBF
        topk_ids = (torch.arange(tokens * top_k) % experts).int()
        inputs = Inputs(weight=weight, x=torch.randn(tokens, k, dtype=torch.bfloat16), topk_ids=topk_ids)
        if name == "ggml_moe_a8":  # whole blocks: as many pairs for each expert, a multiple of 4
            inputs.pairs = topk_ids.argsort(stable=True).int()
            inputs.expert_ids = topk_ids[inputs.pairs.long()][::4].contiguous()
            inputs.count = torch.tensor([tokens * top_k], dtype=torch.int32)
        return inputs

    def multiply(s):
        if name == "ggml_moe_a8":
            return function(s.x, s.weight, s.pairs, s.expert_ids, s.count, number, row, top_k, tokens)
        return function(s.x, s.weight, s.topk_ids, top_k, number, row, tokens)

    try:
        function = getattr(importlib.import_module(of.kernels.__name__ + ".quantization"), name)
    except (AttributeError, ImportError):
        function = None
    return Benchmark(
        f"{name} {type}",
        f"{tokens}x{top_k}x{row}x{k}",
        make,
        bytes=min(experts, tokens * top_k) * row * row_bytes + 2 * tokens * (k + top_k * row),
        flops=2 * tokens * top_k * row * k,
        implementations=of.implementations(kernels=function and multiply),
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
