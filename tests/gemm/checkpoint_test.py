"""Whole checkpoints: weights that are quantized and packed here, number by number, as GPTQModel and AutoAWQ write them,
go the way that a server takes and give the product with what the checkpoint stands for.

The packing is the formats' description in loops over single numbers, apart from packing.py and the kernels. What
upstream's callers do with a checkpoint (sorting act-order's groups, permuting scales and zero points) is packing.py's.
"""

import pytest
import torch

from tests.gemm.packing import marlin_scales, marlin_zeros, to_int32
from tests.harness import Expected, assert_close, assert_same_bits

F16, BF16, I32 = torch.float16, torch.bfloat16, torch.int32
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
AWQ_COLUMNS = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ's order_map: the column of the number at bit 4 · i
M, K, N = 7, 256, 128


def gptq_words(numbers, bits):
    """[count, columns] of int64 → int32 [count · bits / 32, columns]: GPTQModel's pack(), down each column."""
    words = torch.zeros(len(numbers) * bits // 32, numbers.shape[1], dtype=torch.int64)
    for position, row in enumerate(numbers):
        word, bit = divmod(position * bits, 32)
        words[word] |= row << bit & 0xFFFFFFFF
        if bit + bits > 32:  # of 3 bits some lie across two words
            words[word + 1] |= row >> (32 - bit)
    return to_int32(words)


def gptq_checkpoint(bits, group, act_order, symmetric, seed=0):
    """(qweight, qzeros, scales, g_idx) and the weight [K, N] that they stand for."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(K, N, generator=generator, dtype=torch.float64)
    groups = K // group
    order = torch.randperm(K, generator=generator) if act_order else torch.arange(K)
    g_idx = torch.empty(K, dtype=torch.int64)
    g_idx[order] = torch.arange(K) // group  # act-order: groups gather rows from all over the weight
    scales, zeros = torch.empty(groups, N, dtype=F16), torch.empty(groups, N, dtype=torch.int64)
    for g in range(groups):
        low, high = weight[g_idx == g].amin(0).clamp(max=0), weight[g_idx == g].amax(0).clamp(min=0)
        if symmetric:
            scales[g], zeros[g] = torch.maximum(-low, high) * 2 / (2**bits - 1), 2 ** (bits - 1)
        else:
            scales[g] = (high - low) / (2**bits - 1)
            # The format keeps zeros - 1, so that 0 cannot be kept.
            zeros[g] = (-low / scales[g]).round().clamp(1, 2**bits - 1)
    wide = scales.double()
    numbers = ((weight / wide[g_idx]).round() + zeros[g_idx]).clamp(0, 2**bits - 1).long()
    stands_for = (numbers - zeros[g_idx]) * wide[g_idx]
    assert (stands_for - weight).abs().max() < 4 * 2.0**-bits * weight.abs().max()
    qzeros = gptq_words((zeros - 1).t(), bits).t().contiguous()
    return gptq_words(numbers, bits), qzeros, scales, g_idx.to(I32), stands_for


def activations(dtype, device):
    return torch.randn(M, K, generator=torch.Generator().manual_seed(1)).to(dtype).to(device)


def assert_product(result, a, weight):
    a = a.cpu().double()
    # GPUs may round the weight to float16 before they multiply.
    assert_close("result", result, Expected(a @ weight, a.abs() @ weight.abs() * 2**13), 1, 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_by_gptq_gemm(bits, symmetric, act_order, device):
    import sgl_kernel

    *checkpoint, weight = gptq_checkpoint(bits, 64, act_order, symmetric)
    qweight, qzeros, scales, g_idx = (tensor.to(device) for tensor in checkpoint)
    a = activations(F16, device)
    assert_product(sgl_kernel.gptq_gemm(a, qweight, qzeros, scales, g_idx, False, bits), a, weight)
    order = torch.argsort(g_idx, stable=True).to(I32) if act_order else g_idx[:0]
    sgl_kernel.gptq_shuffle(qweight, order, bits)
    assert_product(sgl_kernel.gptq_gemm(a, qweight, qzeros, scales, order, True, bits), a, weight)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [32, 128, K])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_by_marlin(bits, group, act_order, device):
    import sgl_kernel
    from sgl_kernel.scalar_type import scalar_types

    *checkpoint, weight = gptq_checkpoint(bits, group, act_order, symmetric=True)
    qweight, _, scales, g_idx = (tensor.to(device) for tensor in checkpoint)
    order = torch.argsort(g_idx, stable=True).to(I32) if act_order else g_idx[:0]
    a = activations(F16, device)
    result = sgl_kernel.gptq_marlin_gemm(
        a,
        None,
        sgl_kernel.gptq_marlin_repack(qweight, order, K, N, bits),
        marlin_scales(scales.cpu()).to(device),
        None,
        None,
        g_idx[order.long()] if act_order else None,
        order if act_order else None,
        torch.zeros(264, dtype=I32, device=device),
        scalar_types.uint4b8 if bits == 4 else scalar_types.uint8b128,
        M,
        N,
        K,
    )
    assert_product(result, a, weight)


def awq_words(numbers):
    """[rows, columns] of int64, 4 bits → int32 [rows, columns / 8]: AutoAWQ's WQLinear_GEMM.from_linear()."""
    words = torch.zeros(numbers.shape[0], numbers.shape[1] // 8, dtype=torch.int64)
    for column in range(words.shape[1]):
        for i in range(8):
            words[:, column] |= numbers[:, 8 * column + AWQ_COLUMNS[i]] << 4 * i
    return to_int32(words)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("group", [32, 64, 128, K])
def test_awq(group, dtype, device):
    import sgl_kernel
    from sgl_kernel.scalar_type import scalar_types

    generator = torch.Generator().manual_seed(group)
    numbers = torch.randint(0, 16, (K, N), generator=generator)
    zeros = torch.randint(0, 16, (K // group, N), generator=generator)
    scales = (torch.rand(K // group, N, generator=generator) * 0.09 + 0.01).to(dtype)
    weight = (numbers - zeros.repeat_interleave(group, 0)) * scales.double().repeat_interleave(group, 0)
    qweight, qzeros = awq_words(numbers).to(device), awq_words(zeros).to(device)

    decoded = sgl_kernel.awq_dequantize(qweight, scales.to(device), qzeros)
    assert_same_bits("decoded", decoded + 0.0, weight.to(dtype) + 0.0)  # 0 may have either sign
    a = activations(dtype, device)
    result = sgl_kernel.gptq_marlin_gemm(
        a,
        None,
        sgl_kernel.awq_marlin_repack(qweight, K, N, 4),
        marlin_scales(scales).to(device),
        None,
        marlin_zeros(zeros, 4).to(device),
        None,
        None,
        torch.zeros(264, dtype=I32, device=device),
        scalar_types.uint4,
        M,
        N,
        K,
    )
    assert_product(result, a, weight)
