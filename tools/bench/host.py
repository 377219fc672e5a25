"""The caller's time for one eager call of a small operator, with each library's defaults."""

import torch
import torch.nn.functional as F

from tools.bench.benchmark import Benchmark, Libraries
from tools.bench.elementwise import rmsnorm


def benchmarks(of: Libraries):
    small = rmsnorm(of, 1, 128)
    yield Benchmark(
        "host time of rmsnorm",
        "1x128",
        small.make,
        mode="host",
        implementations=of.implementations(
            kernels=lambda s: of.kernels.rmsnorm(s.x, s.weight, out=s.out),
            kernels_ops=lambda s: torch.ops.sgl_kernel.rmsnorm(s.out, s.x, s.weight, 1e-6, True),
            flashinfer=lambda s: of.flashinfer.rmsnorm(s.x, s.weight, out=s.out),
            torch=lambda s: F.rms_norm(s.x, (128,), s.weight, 1e-6),
        ),
    )
