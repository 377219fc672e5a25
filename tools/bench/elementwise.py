"""Norms, gated activations, rotary embeddings. Rows of the shapes of Qwen3-VL-235B-A22B, in bfloat16."""

from types import SimpleNamespace as Inputs

import torch
import torch.nn.functional as F

from tools.bench.benchmark import Benchmark, Libraries, has

BF16 = torch.bfloat16
ROWS = (1, 16, 128, 1024, 16384)
QK_NORM = (4608 * 48, 128)  # the query and key norms of a prefill chunk
ODD_WIDTHS = [(131072, 200), (65536, 576), (16384, 5120), (8192, 12288)]  # not powers of two; beyond the L2 cache


def benchmarks(of: Libraries):
    for rows, hidden in [*((rows, 4096) for rows in ROWS), QK_NORM, *ODD_WIDTHS]:
        yield rmsnorm(of, rows, hidden)
    for rows, hidden in [*((rows, 4096) for rows in ROWS), *ODD_WIDTHS]:
        yield fused_add_rmsnorm(of, rows, hidden)
    for rows in ROWS:
        yield silu_and_mul(of, rows, 12288)
    for rows in ROWS:
        yield rope(of, rows)


def rmsnorm(of, rows, hidden):
    def make():
        x = torch.randn(rows, hidden, dtype=BF16)
        return Inputs(x=x, out=torch.empty_like(x), weight=torch.randn(hidden, dtype=BF16))

    return Benchmark(
        "rmsnorm",
        f"{rows}x{hidden}",
        make,
        bytes=2 * (2 * rows * hidden + hidden),
        implementations=of.implementations(
            kernels=lambda s: of.kernels.rmsnorm(s.x, s.weight, 1e-6, out=s.out, enable_pdl=True),
            flashinfer=lambda s: of.flashinfer.rmsnorm(s.x, s.weight, 1e-6, out=s.out, enable_pdl=True),
            torch=lambda s: F.rms_norm(s.x, (hidden,), s.weight, 1e-6),
        ),
    )


def fused_add_rmsnorm(of, rows, hidden):
    def make():
        x = torch.randn(rows, hidden, dtype=BF16)
        return Inputs(x=x, residual=torch.randn_like(x), weight=torch.randn(hidden, dtype=BF16))

    def by_torch(s):
        s.residual.add_(s.x)
        return F.rms_norm(s.residual, (hidden,), s.weight, 1e-6)

    return Benchmark(
        "fused_add_rmsnorm",
        f"{rows}x{hidden}",
        make,
        bytes=2 * (4 * rows * hidden + hidden),
        implementations=of.implementations(
            kernels=lambda s: of.kernels.fused_add_rmsnorm(s.x, s.residual, s.weight, 1e-6, enable_pdl=True),
            flashinfer=lambda s: of.flashinfer.fused_add_rmsnorm(s.x, s.residual, s.weight, 1e-6, enable_pdl=True),
            torch=by_torch,
        ),
    )


def silu_and_mul(of, rows, width):
    def make():
        return Inputs(x=torch.randn(rows, 2 * width, dtype=BF16), out=torch.empty(rows, width, dtype=BF16))

    return Benchmark(
        "silu_and_mul",
        f"{rows}x{width}",
        make,
        bytes=2 * 3 * rows * width,
        implementations=of.implementations(
            kernels=lambda s: of.kernels.silu_and_mul(s.x, s.out),
            flashinfer=lambda s: of.flashinfer.silu_and_mul(s.x, s.out),
            torch=lambda s: torch.mul(F.silu(s.x[:, :width]), s.x[:, width:], out=s.out),
        ),
    )


def rope(of, rows, heads=64, kv_heads=4, head_dim=128):
    def make():
        angles = torch.rand(40960, head_dim // 2) * 6.28
        return Inputs(
            positions=torch.randint(0, 40960, (rows,)),
            q=torch.randn(rows, heads * head_dim, dtype=BF16),
            k=torch.randn(rows, kv_heads * head_dim, dtype=BF16),
            cache=torch.cat([angles.cos(), angles.sin()], -1),
        )

    def call(library):
        name = "apply_rope_with_cos_sin_cache_inplace"
        return (
            (lambda s: getattr(library, name)(s.positions, s.q, s.k, head_dim, s.cache)) if has(library, name) else None
        )

    return Benchmark(
        "apply_rope",
        f"{rows}x({heads}+{kv_heads})x{head_dim}",
        make,
        bytes=rows * (2 * 2 * (heads + kv_heads) * head_dim + 4 * head_dim + 8),
        implementations=of.implementations(kernels=call(of.kernels), flashinfer=call(of.flashinfer)),
    )
