"""The caller's time for one eager call of a small operator, with each library's defaults; and for the import."""

import os
import subprocess
import sys
from types import SimpleNamespace as Inputs

import torch
import torch.nn.functional as F

from tools.bench.benchmark import Benchmark, Libraries
from tools.bench.elementwise import rmsnorm


def import_us(package: str) -> float:
    """What importing a package costs a fresh process that has imported torch, in µs."""
    program = f"import time, torch; begin = time.perf_counter(); import {package}; print(time.perf_counter() - begin)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return float(run.stdout) * 1e6


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
    yield Benchmark(
        "import beyond torch",
        "-",
        Inputs,
        mode="itself",
        implementations=of.implementations(
            kernels=lambda _: import_us("sgl_kernel"),
            flashinfer=lambda _: import_us("flashinfer"),
        ),
    )
