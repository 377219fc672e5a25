"""More than 2^31 elements of the result, of the activations and of the weight: tiles at the ends of a large product
are the product of their rows and columns alone."""

import pytest
import torch

F16, BF16, FP8, I8, I32 = torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.int32
TILE = 128  # of rows and of columns: what shares a tile of scales or of a packed weight
MANY = 2**18 + TILE
SHAPES = [(MANY, 8192 + TILE, TILE), (MANY, TILE, 8192 + TILE), (3, MANY, 8192 + TILE)]  # M, N, K


def words(*shape):
    return torch.randint(-(2**31), 2**31, shape, dtype=I32, device="cuda")


def fp8(*shape):
    """Any finite numbers up to 15 in magnitude."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda").bitwise_and_(0xD7).view(FP8)


def numbers(*shape):
    return torch.rand(shape, device="cuda") + 0.5


def fp8_scaled_mm(kernels, m, n, k):
    a, b, scales_a, scales_b = fp8(m, k), fp8(n, k), numbers(m), numbers(n)
    return lambda i, j: kernels.fp8_scaled_mm(a[i], b[j].t(), scales_a[i], scales_b[j], BF16)


def int8_scaled_mm(kernels, m, n, k):
    a, b, scales_a, scales_b = fp8(m, k).view(I8), fp8(n, k).view(I8), numbers(m), numbers(n)
    return lambda i, j: kernels.int8_scaled_mm(a[i], b[j].t(), scales_a[i], scales_b[j], BF16)


def fp8_blockwise_scaled_mm(kernels, m, n, k):
    a, b, scales_a, scales_b = fp8(m, k), fp8(n, k), numbers(m, k // 128), numbers(n // 128, k // 128)

    def product(i, j):
        blocks = scales_b[j.start // 128 : -(-j.stop // 128)]
        return kernels.fp8_blockwise_scaled_mm(a[i], b[j].t(), scales_a[i], blocks.t(), BF16)

    return product


def bmm_fp8(kernels, m, n, k):
    a, b, one = fp8(1, m, k), fp8(1, n, k), torch.ones(1, device="cuda")
    return lambda i, j: kernels.bmm_fp8(a[:, i], b[:, j].mT, one, one, BF16)[0]


def cutlass_scaled_fp4_mm(kernels, m, n, k):
    a, b = (words(rows, k // 8).view(torch.uint8) for rows in (m, n))
    scales_a, scales_b = (numbers(-(-rows // 128) * 128, k // 16).to(FP8) for rows in (m, n))
    alpha = torch.full((1,), 1e-3, device="cuda")

    def of(scales, rows):
        return scales[rows.start : -(-rows.stop // 128) * 128]

    return lambda i, j: kernels.cutlass_scaled_fp4_mm(a[i], b[j], of(scales_a, i), of(scales_b, j), alpha, BF16)


def dsv3_router_gemm(kernels, m, n, k):
    a, b = (torch.randn(rows, k, dtype=BF16, device="cuda") for rows in (m, n))
    return lambda i, j: kernels.dsv3_router_gemm(a[i], b[j])


def gptq_gemm(kernels, m, n, k):
    a, weight = torch.rand(m, k, dtype=F16, device="cuda"), words(k // 8, n)
    zeros, scales = words(k // 128, n // 8), numbers(k // 128, n).to(F16) / 64
    none = torch.empty(0, dtype=I32, device="cuda")

    def product(i, j):
        of_zeros = zeros[:, j.start // 8 : j.stop // 8].contiguous()
        of_weight, of_scales = weight[:, j].contiguous(), scales[:, j].contiguous()
        return kernels.gptq_gemm(a[i], of_weight, of_zeros, of_scales, none, True, 4)

    return product


def gptq_marlin_gemm(kernels, m, n, k):
    from sgl_kernel.scalar_type import scalar_types

    a, weight = torch.rand(m, k, dtype=BF16, device="cuda"), words(k // 16, 2 * n)
    scales = numbers(k // 128, n).to(BF16) / 64
    if k == TILE:  # one group has another order: have two
        scales = numbers(2, n).to(BF16) / 64
    locks = torch.zeros(264, dtype=I32, device="cuda")

    def product(i, j):
        of_weight, of_scales = weight[:, 2 * j.start : 2 * j.stop].contiguous(), scales[:, j].contiguous()
        rows, columns = i.stop - i.start, j.stop - j.start
        arguments = (None, None, None, None, locks, scalar_types.uint4b8, rows, columns, k)
        return kernels.gptq_marlin_gemm(a[i], None, of_weight, of_scales, *arguments)

    return product


def qserve_w4a8_per_chn_gemm(kernels, m, n, k):
    a, weight = fp8(m, k).view(I8), words(n, k // 8).view(I8)
    scales_a, scales_b = numbers(m, 1).to(F16) / 256, numbers(n).to(F16) / 256
    zeros, sums = numbers(n).to(F16), numbers(m).to(F16)
    return lambda i, j: kernels.qserve_w4a8_per_chn_gemm(a[i], weight[j], scales_b[j], scales_a[i], zeros[j], sums[i])


PRODUCTS = [
    fp8_scaled_mm,
    int8_scaled_mm,
    fp8_blockwise_scaled_mm,
    bmm_fp8,
    cutlass_scaled_fp4_mm,
    dsv3_router_gemm,
    gptq_gemm,
    gptq_marlin_gemm,
    qserve_w4a8_per_chn_gemm,
]


def ends(extent):
    """The first tile, that around the 2^31st element of a matrix 8320 wide, and the last one."""
    tiles = sorted({0, min(2**31 // (8192 + TILE), extent - 1) // TILE, (extent - 1) // TILE})
    return [slice(tile * TILE, min(extent, (tile + 1) * TILE)) for tile in tiles]


@pytest.mark.cuda
@pytest.mark.large
@pytest.mark.parametrize("shape", SHAPES, ids=["result", "activations", "weight"])
@pytest.mark.parametrize("make", PRODUCTS, ids=lambda make: make.__name__)
def test_ends(make, shape):
    import sgl_kernel

    torch.manual_seed(0)
    m, n, k = shape
    try:
        product = make(sgl_kernel, m, n, k)
        whole, again = (product(slice(0, m), slice(0, n)) for _ in range(2))
    except torch.OutOfMemoryError as error:
        pytest.skip(f"not enough memory: {str(error).splitlines()[0]}")
    assert torch.equal(whole.view(torch.int16), again.view(torch.int16)), "other bits when called again"
    for rows in ends(m):
        for columns in ends(n):
            expected, result = product(rows, columns).double(), whole[rows, columns].double()
            # Kernels of other sizes add in another order, which shows in sums of 8-bit floats.
            wrong = ~((result - expected).abs() <= 2.0**-4 * expected.abs().amax())
            assert not wrong.any(), f"{rows} × {columns}: {int(wrong.sum())} of {wrong.numel()} differ"
