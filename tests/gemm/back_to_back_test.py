"""Kernels that follow each other without a pause: each one's start overlaps the end of the one before.

A quantization and a product take turns over the same memory, with other numbers in each turn: a kernel that reads
before its predecessor has written, or that writes what its predecessor still reads, shows in the bits.
"""

import pytest
import torch

from tests.harness import assert_same_bits

F16, BF16, FP8, I8, I32 = torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.int32
TURNS = 12
N, K = 1536, 2048


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="cuda")


def random(turns, *shape, dtype=BF16):
    """Numbers for each turn, of a magnitude of its own."""
    values = torch.randn(turns, *shape, device="cuda")
    return (values * torch.arange(1.0, turns + 1, device="cuda").view(-1, *[1] * len(shape))).to(dtype)


def fp8_scaled_mm(kernels, m):
    """Both operands are quantized right before, the weight last."""
    x, w = random(TURNS, m, K), random(TURNS, N, K)
    a, b, scales_a, scales_b = empty(m, K, dtype=FP8), empty(N, K, dtype=FP8), empty(m), empty(N)

    def turn(i):
        kernels.sgl_per_token_quant_fp8(x[i], a, scales_a)
        kernels.sgl_per_token_quant_fp8(w[i], b, scales_b)
        return kernels.fp8_scaled_mm(a, b.t(), scales_a, scales_b, BF16)

    return turn


def int8_scaled_mm(kernels, m):
    group = 128
    x, w = random(TURNS, m, group), random(TURNS, N, group)
    a, b, scales_a, scales_b = empty(m, group, dtype=I8), empty(N, group, dtype=I8), empty(m, 1), empty(N, 1)

    def turn(i):
        for input, output, scales in ((w[i], b, scales_b), (x[i], a, scales_a)):
            kernels.sgl_per_token_group_quant_int8(input, output, scales, group, 1e-10, -128.0, 127.0)
        return kernels.int8_scaled_mm(a, b.t(), scales_a, scales_b, BF16)

    return turn


def fp8_blockwise_scaled_mm(kernels, m):
    x, w = random(TURNS, m, K), random(TURNS, N, K)
    a, b, scales_a, scale_b = empty(m, K, dtype=FP8), empty(N, K, dtype=FP8), empty(K // 128, m).t(), empty(1)

    def turn(i):
        kernels.sgl_per_tensor_quant_fp8(w[i], b, scale_b, False)
        kernels.sgl_per_token_group_quant_fp8(x[i], a, scales_a, 128, 1e-10, -448.0, 448.0)
        return kernels.fp8_blockwise_scaled_mm(a, b.t(), scales_a, scale_b.expand(K // 128, N // 128), BF16)

    return turn


def bmm_fp8(kernels, m):
    x, w = random(TURNS, 2, m, K), random(TURNS, 2, N, K)
    a, b, scale_a, scale_b = empty(2, m, K, dtype=FP8), empty(2, N, K, dtype=FP8), empty(1), empty(1)

    def turn(i):
        kernels.sgl_per_tensor_quant_fp8(x[i], a, scale_a, False)
        kernels.sgl_per_tensor_quant_fp8(w[i], b, scale_b, False)
        return kernels.bmm_fp8(a, b.mT, scale_a, scale_b, BF16)

    return turn


def cutlass_scaled_fp4_mm(kernels, m):
    x, w, one = random(TURNS, m, K), random(TURNS, N, K), torch.full((1,), 64.0, device="cuda")
    (a, scales_a), (b, scales_b) = (kernels.scaled_fp4_quant(t[0], one) for t in (x, w))

    def turn(i):
        kernels.scaled_fp4_quant(a, x[i], scales_a.view(I32), one)
        kernels.scaled_fp4_quant(b, w[i], scales_b.view(I32), one)
        return kernels.cutlass_scaled_fp4_mm(a, b, scales_a, scales_b, one, BF16)

    return turn


def awq_weight(turns, columns):
    words = torch.randint(-(2**31), 2**31, (turns, K, columns // 8), dtype=I32, device="cuda")
    return words, words[0, : K // 128].clone(), torch.rand(turns, K // 128, columns, device="cuda") + 0.5


def dsv3_router_gemm(kernels, m):
    """A weight that was decoded right before; the memory for it may be that of the turn before."""
    x = random(TURNS, m, N)
    words, zeros, scales = awq_weight(TURNS, N)
    scales = scales.to(BF16)
    return lambda i: kernels.dsv3_router_gemm(x[i], kernels.awq_dequantize(words[i], scales[i], zeros), torch.float32)


def gptq_marlin_gemm(kernels, m):
    """A weight that was repacked right before, twice: the second product takes the result of the first."""
    from sgl_kernel.scalar_type import scalar_types

    x, locks = random(TURNS, m, K, dtype=F16) / 256, torch.zeros(264, dtype=I32, device="cuda")
    words, _, scales = awq_weight(TURNS, K)
    scales = scales.to(F16) / 1024

    def turn(i):
        weight = kernels.awq_marlin_repack(words[i], K, K, 4)
        rest = (None, None, None, None, locks, scalar_types.uint4b8, m, K, K)
        once = kernels.gptq_marlin_gemm(x[i], None, weight, scales[i], *rest)
        return kernels.gptq_marlin_gemm(once, None, weight, scales[i], *rest)

    return turn


def gptq_gemm(kernels, m):
    x, none = random(TURNS, m, K, dtype=F16) / 256, torch.empty(0, dtype=I32, device="cuda")
    words = torch.randint(-(2**31), 2**31, (TURNS, K // 8, K), dtype=I32, device="cuda")
    zeros, scales = words[0, : K // 128, : K // 8].contiguous(), torch.rand(K // 128, K, device="cuda").half() / 1024

    def turn(i):
        once = kernels.gptq_gemm(x[i], words[i], zeros, scales, none, True, 4)
        return kernels.gptq_gemm(once, words[i], zeros, scales, none, True, 4)

    return turn


def ggml_mul_mat(kernels, m):
    """Q8_0: a scale of f16 and 32 numbers a block."""
    blocks = torch.randint(0, 256, (TURNS, K, K // 32, 34), dtype=torch.uint8, device="cuda")
    blocks[..., :2] = torch.tensor([0.001], dtype=F16, device="cuda").view(torch.uint8)
    x, weight = random(TURNS, m, K), blocks.view(TURNS, K, -1)
    multiply = kernels.ggml_mul_mat_vec_a8 if m <= 8 else kernels.ggml_mul_mat_a8
    return lambda i: multiply(weight[i], multiply(weight[i], x[i], 8, K), 8, K)


CHAINS = [
    fp8_scaled_mm,
    int8_scaled_mm,
    fp8_blockwise_scaled_mm,
    bmm_fp8,
    cutlass_scaled_fp4_mm,
    dsv3_router_gemm,
    gptq_marlin_gemm,
    gptq_gemm,
    ggml_mul_mat,
]


class Kernels:
    """sgl_kernel's functions; each waits for the GPU afterwards while `pauses`."""

    def __init__(self):
        self.pauses = True

    def __getattr__(self, name):
        import sgl_kernel

        function = getattr(sgl_kernel, name)

        def call(*args):
            result = function(*args)
            if self.pauses:
                torch.cuda.synchronize()
            return result

        return call


@pytest.mark.cuda
@pytest.mark.parametrize("m", [1, 16, 48, 400])
@pytest.mark.parametrize("make", CHAINS, ids=lambda make: make.__name__)
def test_bits_are_those_of_kernels_with_a_pause_between(make, m):
    pytest.importorskip("sgl_kernel._quantization")
    torch.manual_seed(0)
    kernels = Kernels()
    turn = make(kernels, m)
    expected = [turn(i).clone() for i in range(TURNS)]
    for result in expected[1:]:
        assert result.isfinite().all() and not torch.equal(result, expected[0])
    kernels.pauses = False
    eager = [turn(i) for i in range(TURNS)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [turn(i) for i in range(TURNS)]
    for _ in range(3):
        graph.replay()
    for name, results in (("eager", eager), ("replayed", captured)):
        for i, (result, right) in enumerate(zip(results, expected, strict=True)):
            assert_same_bits(f"{name} turn {i}", result, right)
