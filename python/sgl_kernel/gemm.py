"""Products of quantized matrices.

mat_b is column-major in the scaled products: [K, N] with stride(0) == 1, the transpose of a weight as it is stored.
"""

from __future__ import annotations

import importlib

import torch

from sgl_kernel import _gemm as _native
from sgl_kernel._ops import eager_or_traced, fakes, implements
from sgl_kernel.marlin import awq_marlin_repack as awq_marlin_repack
from sgl_kernel.marlin import gptq_marlin_repack as gptq_marlin_repack
from sgl_kernel.scalar_type import ScalarType

__all__ = [
    "bmm_fp8",
    "cutlass_scaled_fp4_mm",
    "dsv3_fused_a_gemm",
    "dsv3_router_gemm",
    "fp8_blockwise_scaled_mm",
    "fp8_scaled_mm",
    "gptq_gemm",
    "gptq_marlin_gemm",
    "gptq_shuffle",
    "int8_scaled_mm",
    "qserve_w4a8_per_chn_gemm",
    "qserve_w4a8_per_group_gemm",
]

# Upstream has these names in this module as well.
_OF_QUANTIZATION = frozenset(
    (
        "awq_dequantize",
        "scaled_fp4_experts_quant",
        "scaled_fp4_grouped_quant",
        "scaled_fp4_quant",
        "sgl_per_tensor_quant_fp8",
        "sgl_per_token_group_quant_8bit",
        "sgl_per_token_group_quant_fp8",
        "sgl_per_token_group_quant_int8",
        "sgl_per_token_quant_fp8",
        "silu_and_mul_scaled_fp4_grouped_quant",
    )
)


def __getattr__(name: str):
    if name in _OF_QUANTIZATION:
        return getattr(importlib.import_module("sgl_kernel.quantization"), name)
    raise AttributeError(f"module 'sgl_kernel.gemm' has no attribute '{name}'")


def _product(mat_a, mat_b, out_dtype):
    # The shapes of a wrong call are the native function's to judge; they only must not fail earlier.
    rows = mat_a.shape[0] if mat_a.dim() > 0 else 0
    columns = mat_b.shape[-1] if mat_b.dim() > 0 else 0
    return mat_a.new_empty((rows, columns), dtype=out_dtype)


@fakes("int8_scaled_mm")
@fakes("fp8_scaled_mm")
def _fake_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype, bias):
    return _product(mat_a, mat_b, out_dtype)


@fakes("fp8_blockwise_scaled_mm")
def _fake_fp8_blockwise_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype):
    return _product(mat_a, mat_b, out_dtype)


@implements("fp8_scaled_mm")
def _fp8_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype, bias):
    output = _product(mat_a, mat_b, out_dtype)
    _native.fp8_scaled_mm(output, mat_a, mat_b, scales_a, scales_b, bias)
    return output


@implements("int8_scaled_mm")
def _int8_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype, bias):
    output = _product(mat_a, mat_b, out_dtype)
    _native.int8_scaled_mm(output, mat_a, mat_b, scales_a, scales_b, bias)
    return output


@implements("fp8_blockwise_scaled_mm")
def _fp8_blockwise_scaled_mm(mat_a, mat_b, scales_a, scales_b, out_dtype):
    output = _product(mat_a, mat_b, out_dtype)
    _native.fp8_blockwise_scaled_mm(output, mat_a, mat_b, scales_a, scales_b)
    return output


_fp8_operator = eager_or_traced("fp8_scaled_mm", _fp8_scaled_mm)
_int8_operator = eager_or_traced("int8_scaled_mm", _int8_scaled_mm)
_blockwise_operator = eager_or_traced("fp8_blockwise_scaled_mm", _fp8_blockwise_scaled_mm)

_bmm_operator = eager_or_traced("bmm_fp8", _native.bmm_fp8)


def bmm_fp8(
    A: torch.Tensor,
    B: torch.Tensor,
    A_scale: torch.Tensor,
    B_scale: torch.Tensor,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiplies batches of 8-bit float matrices with one scale for each operand.

        result[b, i, j] = A_scale · B_scale · Σ_l A[b, i, l] · B[b, l, j]

    Args:
      A: [batches, M, K], float8_e4m3fn or float8_e5m2; the last dimension is dense.
      B: [batches, K, N], float8_e4m3fn or float8_e5m2, column-major: stride(1) == 1.
      A_scale: float32, one element.
      B_scale: float32, one element.
      dtype: float16 or bfloat16; of the result, where `out` is not given.
      out: [batches, M, N], float16 or bfloat16: takes the result.

    Returns:
      [batches, M, N]: `out` if given. Sums are as exact as fp8_scaled_mm's.

    Raises:
      ValueError: another shape, dtype, stride or device.
    """
    if out is None:
        shape = (A.shape[0], A.shape[1], B.shape[2]) if A.dim() == B.dim() == 3 else (0, 0, 0)
        out = A.new_empty(shape, dtype=dtype)
    # Upstream's workspace and handle are not looked at: anything serves.
    _bmm_operator(A, B, out, A_scale, B_scale, A_scale, 0)
    return out


def fp8_scaled_mm(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    scales_a: torch.Tensor,
    scales_b: torch.Tensor,
    out_dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiplies e4m3 matrices with a scale for each row of A and each column of B, or one for all.

        result[i, j] = scales_a[i] · scales_b[j] · Σ_l mat_a[i, l] · mat_b[l, j] + bias[j]

    Args:
      mat_a: [M, K], float8_e4m3fn; rows may be strided, the last dimension is dense.
      mat_b: [K, N], float8_e4m3fn, column-major; columns may be strided.
      scales_a: float32, M numbers or one.
      scales_b: float32, N numbers or one.
      out_dtype: float16 or bfloat16.
      bias: [N], out_dtype, or None.

    Returns:
      [M, N], out_dtype. Sums are float32's, but on Hopper each 32 products that are added cost up to 2⁻¹³ of the
      largest partial sum within 4096 of K (what cuBLASLt calls fast accumulation, there over all of K). Of products
      with random signs that is little, 0.1%; but of positive ones 1.3% of the sum were lost at K = 1024 and 6.5% from
      K = 4096 to 32768 (3000 rows on an H200, 2026-11-23), and by fp8_blockwise_scaled_mm 0.06%. NaN in a row or
      column makes its results NaN; beyond the range they are infinite.

    Raises:
      ValueError: another shape, dtype, stride or device.
    """
    return _fp8_operator(mat_a, mat_b, scales_a, scales_b, out_dtype, bias)


def int8_scaled_mm(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    scales_a: torch.Tensor,
    scales_b: torch.Tensor,
    out_dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """fp8_scaled_mm for int8 matrices. The sum is exact in int32; K is at most 131071."""
    return _int8_operator(mat_a, mat_b, scales_a, scales_b, out_dtype, bias)


def fp8_blockwise_scaled_mm(
    mat_a: torch.Tensor, mat_b: torch.Tensor, scales_a: torch.Tensor, scales_b: torch.Tensor, out_dtype: torch.dtype
) -> torch.Tensor:
    """Multiplies e4m3 matrices with a scale for each 128 elements of a row of A, and each 128 × 128 of B.

        result[i, j] = Σ_g scales_a[i, g] · scales_b[g, j // 128] · Σ_{l // 128 == g} mat_a[i, l] · mat_b[l, j]

    Args:
      mat_a: [M, K], float8_e4m3fn; rows may be strided, the last dimension is dense.
      mat_b: [K, N], float8_e4m3fn, column-major; columns may be strided.
      scales_a: [M, ceil(K / 128)], float32, any strides.
      scales_b: [ceil(K / 128), ceil(N / 128)], float32, any strides.
      out_dtype: float16 or bfloat16.

    Returns:
      [M, N], out_dtype. Groups are added in float32; the sum of one is as exact as fp8_scaled_mm's.

    Raises:
      ValueError: another shape, dtype, stride or device.
    """
    return _blockwise_operator(mat_a, mat_b, scales_a, scales_b, out_dtype)


_fused_a_operator = eager_or_traced("dsv3_fused_a_gemm", _native.dsv3_fused_a_gemm)
_router_operator = eager_or_traced("dsv3_router_gemm", _native.dsv3_router_gemm)


def dsv3_fused_a_gemm(mat_a: torch.Tensor, mat_b: torch.Tensor, output: torch.Tensor | None = None) -> torch.Tensor:
    """Multiplies a few rows with a column-major bfloat16 matrix: result = mat_a @ mat_b.

    Args:
      mat_a: [M, K], bfloat16; rows may be strided. Any M, but the kernel is made for up to 16.
      mat_b: [K, N], bfloat16, column-major: stride(0) == 1.
      output: [M, N], bfloat16: takes the result.

    Returns:
      [M, N], bfloat16: `output` if given. Sums are float32's.

    Raises:
      ValueError: another shape, dtype, stride or device.
    """
    if output is None:
        output = _product(mat_a, mat_b, mat_a.dtype)
    _fused_a_operator(output, mat_a, mat_b)
    return output


def dsv3_router_gemm(
    hidden_states: torch.Tensor, router_weights: torch.Tensor, out_dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """Multiplies a few rows with the rows of a bfloat16 matrix: result = hidden_states @ router_weights.T.

    Args:
      hidden_states: [M, K], bfloat16; rows may be strided. Any M, but the kernel is made for up to 16.
      router_weights: [N, K], bfloat16; rows may be strided.
      out_dtype: bfloat16 or float32.

    Returns:
      [M, N], out_dtype. Sums are float32's.

    Raises:
      ValueError: another shape, dtype, stride or device.
    """
    output = _product(hidden_states, router_weights.t() if router_weights.dim() == 2 else router_weights, out_dtype)
    _router_operator(output, hidden_states, router_weights)
    return output


@implements("cutlass_scaled_fp4_mm")
def _cutlass_scaled_fp4_mm(out, a, b, block_scale_a, block_scale_b, alpha):
    scratch = _scratch(a, _native.cutlass_scaled_fp4_mm_workspace_size(_extent(a, 0), 2 * _extent(a, 1), a.is_cuda))
    _native.cutlass_scaled_fp4_mm(scratch, out, a, b, block_scale_a, block_scale_b, alpha)


_fp4_operator = eager_or_traced("cutlass_scaled_fp4_mm", _cutlass_scaled_fp4_mm)


def cutlass_scaled_fp4_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    block_scale_a: torch.Tensor,
    block_scale_b: torch.Tensor,
    alpha: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """Multiplies NVFP4 matrices, as scaled_fp4_quant makes them, on any GPU.

        result[i, j] = alpha · Σ_l a[i, l] · scale_a[i, l // 16] · b[j, l] · scale_b[j, l // 16]

    Args:
      a: [M, K / 2], uint8: two e2m1 values a byte, the first in the low bits. K is a multiple of 16.
      b: [N, K / 2], uint8.
      block_scale_a: [ceil(M / 128) · 128, ceil(K / 64) · 4], float8_e4m3fn, not negative, in tiles of 128 × 4;
        contiguous.
      block_scale_b: [ceil(N / 128) · 128, ceil(K / 64) · 4], likewise. Both start at multiples of 16 bytes.
      alpha: float32, one element: 1 / (global scale of a · global scale of b).
      out_dtype: float16 or bfloat16.

    Returns:
      [M, N], out_dtype. Products are exact, sums are float32's. sm_100a and sm_120a multiply on FP4 tensor cores; that
      code is compiled and has never run. Other GPUs widen to float16.

    Raises:
      ValueError: another shape, dtype, stride or device.
    """
    out = a.new_empty((a.shape[0], b.shape[0]) if a.dim() == b.dim() == 2 else (0, 0), dtype=out_dtype)
    _fp4_operator(out, a, b, block_scale_a, block_scale_b, alpha)
    return out


_per_channel_operator = eager_or_traced("qserve_w4a8_per_chn_gemm", _native.qserve_w4a8_per_chn_gemm)
_per_group_operator = eager_or_traced("qserve_w4a8_per_group_gemm", _native.qserve_w4a8_per_group_gemm)


def _qserve_result(in_feats, kernel):
    rows = in_feats.shape[0] if in_feats.dim() > 0 else 0
    columns = kernel.shape[0] if kernel.dim() > 0 else 0
    return in_feats.new_empty((rows, columns), dtype=torch.float16)


def qserve_w4a8_per_chn_gemm(
    in_feats: torch.Tensor,
    kernel: torch.Tensor,
    wscales: torch.Tensor,
    ascales: torch.Tensor,
    w_szs: torch.Tensor,
    a_ssums: torch.Tensor,
    out_feats: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiplies int8 rows with QServe's 4-bit weights that have a scale and a zero point for each channel.

        result[i, j] = ascales[i] · wscales[j] · Σ_l in_feats[i, l] · q[j, l] - a_ssums[i] · w_szs[j]

    Args:
      in_feats: [M, K], int8; rows may be strided.
      kernel: [N, K / 2], int8: the weights q, 0 to 15, in QServe's tiles of 32 × 32 (kernels/gemm/qserve_mm.h),
        contiguous, at a multiple of 16 bytes.
      wscales: float16, N numbers.
      ascales: float16, M numbers.
      w_szs: float16, N numbers: scale times zero point.
      a_ssums: float16, M numbers: sums of the rows as they were before quantization.
      out_feats: [M, N], float16: takes the result.

    Returns:
      [M, N], float16: `out_feats` if given. The sum is exact in int32; K is at most 131071.

    Raises:
      ValueError: another shape, dtype, stride or device; N or K is no multiple of 32.
    """
    if out_feats is None:
        out_feats = _qserve_result(in_feats, kernel)
    _per_channel_operator(in_feats, kernel, wscales, ascales, w_szs, a_ssums, out_feats)
    return out_feats


def qserve_w4a8_per_group_gemm(
    in_feats: torch.Tensor,
    kernel: torch.Tensor,
    zeros: torch.Tensor,
    scales_i8: torch.Tensor,
    wscales: torch.Tensor,
    ascales: torch.Tensor,
    out_feats: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiplies int8 rows with QServe's 4-bit weights that have an int8 scale and zero for each group of 128.

        weight[j, l] = int8(q[j, l] · scale[j, l // 128] + zero[j, l // 128])
        result[i, j] = ascales[i] · wscales[j] · Σ_l in_feats[i, l] · weight[j, l]

    Args:
      in_feats: [M, K], int8; rows may be strided. K is a multiple of 128.
      kernel: [N, K / 2], int8: the weights q, 0 to 15, in QServe's tiles of 32 × 32 (kernels/gemm/qserve_mm.h),
        contiguous, at a multiple of 16 bytes.
      zeros: [K / 128, N], int8, in QServe's order of rows: minus the zero point times the scale.
      scales_i8: [K / 128, N], int8, in that order; both like kernel contiguous, at a multiple of 16 bytes.
      wscales: float16, N numbers.
      ascales: float16, M numbers.
      out_feats: [M, N], float16: takes the result.

    Returns:
      [M, N], float16: `out_feats` if given. The sum is exact in int32; K is at most 131071.

    Raises:
      ValueError: another shape, dtype, stride or device; N is no multiple of 32, or K none of 128.
    """
    if out_feats is None:
        out_feats = _qserve_result(in_feats, kernel)
    _per_group_operator(in_feats, kernel, zeros, scales_i8, wscales, ascales, out_feats)
    return out_feats


def _extent(tensor, dim):
    """An extent, or 0 where there is none: a wrong rank is the native function's to tell."""
    return tensor.shape[dim] if tensor.dim() == 2 else 0


def _scratch(a, size):
    return a.new_empty(size, dtype=torch.uint8)


# Places among gptq_marlin_gemm's arguments behind c_or_none.
_WEIGHT, _PERM, _SIZE_N = 0, 5, 9


@fakes("gptq_marlin_gemm")
def _fake_gptq_marlin_gemm(a, c_or_none, *others):
    return a.new_empty((_extent(a, 0), others[_SIZE_N]))


@implements("gptq_marlin_gemm")
def _gptq_marlin_gemm(a, c_or_none, *others):
    # Of a wrong call only the native function's message should be seen. It refuses more columns than the weight has
    # bits before it looks at the result, which need not be allocated for them.
    perm, m, n, k = others[_PERM], _extent(a, 0), max(others[_SIZE_N], 0), _extent(a, 1)
    if n > 32 * others[_WEIGHT].numel():
        n = 0
    result = a.new_empty((m, n)) if c_or_none is None else c_or_none
    gathers = perm is not None and perm.numel() > 0
    scratch = _scratch(a, _native.gptq_marlin_gemm_workspace_size(m, n, k, gathers, a.is_cuda))
    _native.gptq_marlin_gemm(result, scratch, a, c_or_none, *others)
    return result


@implements("gptq_shuffle")
def _gptq_shuffle(q_weight, q_perm, bit):
    workspace = torch.empty_like(q_weight) if q_perm.numel() > 0 else q_weight.new_empty(0)
    _native.gptq_shuffle(workspace, q_weight, q_perm, bit)


@fakes("gptq_gemm")
def _fake_gptq_gemm(a, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_shuffle, bit):
    return a.new_empty((_extent(a, 0), _extent(b_q_weight, 1)))


@implements("gptq_gemm")
def _gptq_gemm(a, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_shuffle, bit):
    m, n, k = _extent(a, 0), _extent(b_q_weight, 1), _extent(a, 1)
    result = a.new_empty((m, n))
    gathers = use_shuffle and b_g_idx.numel() > 0
    scratch = _scratch(a, _native.gptq_gemm_workspace_size(m, n, k, gathers, a.is_cuda))
    _native.gptq_gemm(result, scratch, a, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_shuffle, bit)
    return result


_marlin_operator = eager_or_traced("gptq_marlin_gemm", _gptq_marlin_gemm)
_gptq_operator = eager_or_traced("gptq_gemm", _gptq_gemm)
_shuffle_operator = eager_or_traced("gptq_shuffle", _gptq_shuffle)


def gptq_marlin_gemm(
    a: torch.Tensor,
    c: torch.Tensor | None,
    b_q_weight: torch.Tensor,
    b_scales: torch.Tensor,
    global_scale: torch.Tensor | None,
    b_zeros: torch.Tensor | None,
    g_idx: torch.Tensor | None,
    perm: torch.Tensor | None,
    workspace: torch.Tensor,
    b_q_type: ScalarType,
    size_m: int,
    size_n: int,
    size_k: int,
    is_k_full: bool = True,
    use_atomic_add: bool = False,
    use_fp32_reduce: bool = False,
    is_zp_float: bool = False,
) -> torch.Tensor:
    """Multiplies with a weight of 4 or 8 bits in Marlin's layout.

        result[m, n] = Σ_k a[m, p(k)] · (q[k, n] - zero[g(k), n]) · scale[g(k), n]

    Args:
      a: [M, K], float16 or bfloat16; rows may be strided by multiples of 8 elements.
      c: [M, N], a's dtype: where the result goes, or None.
      b_q_weight: int32 [K / 16, N · bits / 2], as gptq_marlin_repack and awq_marlin_repack make it.
      b_scales: [G, N], a's dtype, the columns permuted for Marlin. For float4_e2m1f float8_e4m3fn bytes in Marlin's
        form, 2⁷ times the scales; for float8_e4m3fn 2⁸ times the scales, or 2¹²⁰ times in bfloat16.
      global_scale: one number of a's dtype with float4_e2m1f, 2⁷ times the scale (2¹¹⁹ times in bfloat16); else None.
      b_zeros: with uint4 and uint8 the zero points, int32 [G, N · bits / 32] permuted and packed for Marlin, or
        float16 [G, N] with is_zp_float, and without act-order; else None, or empty.
      g_idx, perm: int32 [K], or None, or empty: act-order, p(k) = perm[k].
      workspace: int32, upstream's locks; neither read nor written.
      b_q_type: scalar_types.uint4, uint8, uint4b8 (zero is 8), uint8b128 (zero is 128), float8_e4m3fn or float4_e2m1f;
        or its id.
      size_m, size_n, size_k: M, N, K; N a multiple of 64, K of 16 · G.
      is_k_full: if not, and with act-order, g(k) = g_idx[k]; else g(k) = k // (K / G).
      use_atomic_add, use_fp32_reduce: leave to add partial sums otherwise; here they are added in float32 and in one
        order, always.
      is_zp_float: see b_zeros.

    All but a are contiguous; on a GPU a, b_q_weight, b_scales and float16 b_zeros start at multiples of 16 bytes.

    Returns:
      c, or a new tensor [M, N]. Sums are float32. An infinity in a row of a makes its results infinite, or NaN where
      the weight is zero.

    Raises:
      ValueError: another shape, dtype, stride, device or type.
    """
    type_id = b_q_type.id if isinstance(b_q_type, ScalarType) else b_q_type
    options = (is_k_full, use_atomic_add, use_fp32_reduce, is_zp_float)
    weight = (b_q_weight, b_scales, global_scale, b_zeros, g_idx, perm, workspace)
    if c is not None and torch.compiler.is_compiling():
        # An operator's result must not be one of its arguments there.
        return c.copy_(_marlin_operator(a, None, *weight, type_id, size_m, size_n, size_k, *options))
    return _marlin_operator(a, c, *weight, type_id, size_m, size_n, size_k, *options)


def gptq_gemm(
    a: torch.Tensor,
    b_q_weight: torch.Tensor,
    b_gptq_qzeros: torch.Tensor,
    b_gptq_scales: torch.Tensor,
    b_g_idx: torch.Tensor,
    use_shuffle: bool,
    bit: int,
) -> torch.Tensor:
    """Multiplies with a weight in GPTQ's layout.

        result[m, n] = Σ_k a[m, p(k)] · (q[k, n] - zeros[g(k), n] - 1) · scales[g(k), n]

    Args:
      a: [M, K], float16. K and N are multiples of 32.
      b_q_weight: int32 [K · bit / 32, N], packed along K; through gptq_shuffle before, if use_shuffle.
      b_gptq_qzeros: int32 [G, N · bit / 32], packed along N; one is added to each.
      b_gptq_scales: [G, N], float16.
      b_g_idx: int32 [K], or empty. With use_shuffle it is p, gptq_shuffle's q_perm, and g(k) = k // (K / G); without
        it is g, and p(k) = k. Empty: p(k) = k and g(k) = k // (K / G).
      use_shuffle: whether the weight went through gptq_shuffle.
      bit: 2, 3, 4 or 8.

    All are contiguous; on a GPU a, b_q_weight and b_gptq_scales start at multiples of 16 bytes.

    Returns:
      [M, N], float16. Sums are float32. An infinity in a row of a makes its results infinite, or NaN where the weight
      is zero; with up to 8 tokens and a shuffled weight of 4 bits on Hopper it makes all of them NaN.

    Raises:
      ValueError: another shape, dtype, stride, device or number.
    """
    return _gptq_operator(a, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_shuffle, bit)


def gptq_shuffle(q_weight: torch.Tensor, q_perm: torch.Tensor, bit: int) -> None:
    """Makes a weight ready for gptq_gemm with use_shuffle, in place.

    Row k becomes row q_perm[k]; then the numbers of each word are reordered so that neighbours lie 16 bits apart.

    Args:
      q_weight: int32 [K · bit / 32, N], packed along K, contiguous.
      q_perm: int32 [K], or empty for the rows as they are.
      bit: 2, 3, 4 or 8.

    Raises:
      ValueError: another shape, dtype, stride, device or number; a q_perm out of range (on a GPU
        under SGL_KERNEL_CHECK=1 alone).
    """
    _shuffle_operator(q_weight, q_perm, bit)
