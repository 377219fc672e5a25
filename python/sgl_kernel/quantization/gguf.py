"""Matrices in the block formats of ggml, as GGUF files hold them.

A weight is the file's bytes: uint8 [row, bytes_per_row], contiguous, at an even address. `quant_type` is ggml's number,
which the `gguf` package calls GGMLQuantizationType: Q4_0 (2), Q4_1 (3), Q5_0 (6), Q5_1 (7), Q8_0 (8), Q2_K … Q6_K
(10 … 14), IQ2_XXS (16), IQ2_XS (17), IQ3_XXS (18), IQ1_S (19), IQ4_NL (20), IQ3_S (21), IQ2_S (22), IQ4_XS (23),
IQ1_M (29).
"""

from __future__ import annotations

import torch

from sgl_kernel import _quantization as _native
from sgl_kernel._ops import eager_or_traced, fakes, implements

__all__ = [
    "add_rmsnorm_ggml_mul_mat_vec_a8",
    "ggml_dequantize",
    "ggml_moe_a8",
    "ggml_moe_a8_vec",
    "ggml_moe_get_block_size",
    "ggml_mul_mat_a8",
    "ggml_mul_mat_vec_a8",
    "silu_and_mul_ggml_mul_mat_vec_a8",
]


@implements("ggml_dequantize")
def _dequantize(W, type, m, n, dtype):
    if m * n > 8 * W.numel():  # no format has less than a bit for an element: told before the result is allocated
        raise ValueError(f"ggml_dequantize: W.numel() is {W.numel()}, expected the bytes of m * n = {m * n} elements")
    result = _dequantized(W, type, max(m, 0), max(n, 0), dtype)
    _native.ggml_dequantize(result, W, type, m, n)
    return result


@fakes("ggml_dequantize")
def _dequantized(W, type, m, n, dtype):
    return W.new_empty((m, n), dtype=dtype or torch.float16)


@fakes("ggml_mul_mat_vec_a8")
@fakes("ggml_mul_mat_a8")
@fakes("silu_and_mul_ggml_mul_mat_vec_a8")
def _product(W, X, type, row):
    return X.new_empty((X.shape[0], row))


# The shapes of a wrong call are the native functions' to judge; they only must not fail earlier, or be allocated.
def _columns(W, row):
    return row if W.shape[:1] == (row,) else 0


def _multiply(native, W, X, type, row):
    num_tokens, k = X.shape if X.dim() == 2 else (0, 0)
    result = X.new_empty((num_tokens, _columns(W, row)))
    workspace = X.new_empty(_native.ggml_workspace_size(num_tokens, k, X.is_cuda), dtype=torch.uint8)
    native(result, workspace, W, X, type, row)
    return result


@implements("ggml_mul_mat_vec_a8")
def _mul_mat_vec(W, X, type, row):
    return _multiply(_native.ggml_mul_mat_vec_a8, W, X, type, row)


@implements("ggml_mul_mat_a8")
def _mul_mat(W, X, type, row):
    return _multiply(_native.ggml_mul_mat_a8, W, X, type, row)


@implements("silu_and_mul_ggml_mul_mat_vec_a8")
def _silu_and_mul_mul_mat_vec(W, X, type, row):
    num_tokens, k = (X.shape[0], X.shape[1] // 2) if X.dim() == 2 else (0, 0)
    result = X.new_empty((num_tokens, _columns(W, row)))
    workspace = X.new_empty(_native.ggml_mul_mat_vec_workspace_size(num_tokens, k, X.is_cuda), dtype=torch.uint8)
    _native.silu_and_mul_ggml_mul_mat_vec_a8(result, workspace, W, X, type, row)
    return result


@implements("add_rmsnorm_ggml_mul_mat_vec_a8")
def _add_rmsnorm_mul_mat_vec(W, X, residual, norm_weight, eps, type, row):
    num_tokens, k = X.shape if X.dim() == 2 else (0, 0)
    result, residual_sum = X.new_empty((num_tokens, _columns(W, row))), X.new_empty(X.shape)
    workspace = X.new_empty(_native.ggml_mul_mat_vec_workspace_size(num_tokens, k, X.is_cuda), dtype=torch.uint8)
    _native.add_rmsnorm_ggml_mul_mat_vec_a8(
        result, residual_sum, workspace, W, X, residual, norm_weight, eps, type, row
    )
    return result, residual_sum


@fakes("add_rmsnorm_ggml_mul_mat_vec_a8")
def _product_and_sum(W, X, residual, norm_weight, eps, type, row):
    return X.new_empty((X.shape[0], row)), X.new_empty(X.shape)


@fakes("ggml_moe_a8")
def _product_of_pairs(X, W, sorted_token_ids, expert_ids, num_tokens_post_padded, type, row, top_k, tokens):
    return X.new_empty((tokens * top_k, row))


@fakes("ggml_moe_a8_vec")
def _product_of_choices(X, W, topk_ids, top_k, type, row, tokens):
    return X.new_empty((tokens * top_k, row))


def _multiply_experts(native, X, W, indices, numbers, row, pairs):
    num_tokens, k = X.shape if X.dim() == 2 else (0, 0)
    # Of a wrong call only the native function's message should be seen: the result need not be allocated for it.
    is_right = W.dim() == 3 and W.shape[1] == row and 0 <= pairs <= indices[0].numel()
    result = X.new_empty((pairs, row) if is_right else (0, 0))
    workspace = X.new_empty(_native.ggml_workspace_size(num_tokens, k, X.is_cuda), dtype=torch.uint8)
    native(result, workspace, X, W, *indices, *numbers)
    return result


@implements("ggml_moe_a8")
def _moe(X, W, sorted_token_ids, expert_ids, num_tokens_post_padded, type, row, top_k, tokens):
    indices, numbers = (sorted_token_ids, expert_ids, num_tokens_post_padded), (type, row, top_k, tokens)
    return _multiply_experts(_native.ggml_moe_a8, X, W, indices, numbers, row, tokens * top_k)


@implements("ggml_moe_a8_vec")
def _moe_vec(X, W, topk_ids, top_k, type, row, tokens):
    return _multiply_experts(
        _native.ggml_moe_a8_vec, X, W, (topk_ids,), (top_k, type, row, tokens), row, tokens * top_k
    )


# A table, because torch.compile looks into the function, and cannot into a native one. ggml has fewer types than that.
_BLOCK_SIZES = {type: size for type in range(64) if (size := _native.ggml_moe_get_block_size(type)) > 0}


@fakes("ggml_moe_get_block_size")
def _block_size(type):
    return _BLOCK_SIZES.get(type, 0)


_ggml_moe_a8 = eager_or_traced("ggml_moe_a8", _moe)
_ggml_moe_a8_vec = eager_or_traced("ggml_moe_a8_vec", _moe_vec)
_silu_and_mul_ggml_mul_mat_vec_a8 = eager_or_traced("silu_and_mul_ggml_mul_mat_vec_a8", _silu_and_mul_mul_mat_vec)
_add_rmsnorm_ggml_mul_mat_vec_a8 = eager_or_traced("add_rmsnorm_ggml_mul_mat_vec_a8", _add_rmsnorm_mul_mat_vec)
_ggml_dequantize = eager_or_traced("ggml_dequantize", _dequantize)
_ggml_mul_mat_vec_a8 = eager_or_traced("ggml_mul_mat_vec_a8", _mul_mat_vec)
_ggml_mul_mat_a8 = eager_or_traced("ggml_mul_mat_a8", _mul_mat)


def ggml_dequantize(
    weight: torch.Tensor, quant_type: int, M: int, N: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Decodes a weight, bit for bit as gguf.quants.dequantize() does, then rounds to dtype (to nearest even).

    Args:
      weight: uint8, contiguous, the bytes of M · N elements.
      quant_type: the block format.
      M, N: the shape of the result; N is a multiple of the format's block, 32 or 256.
      dtype: float16 (also if None), bfloat16 or float32.

    Returns:
      [M, N].

    Raises:
      ValueError: an unknown quant_type or dtype, or a weight that is not M rows of N elements.
    """
    return _ggml_dequantize(weight, quant_type, M, N, dtype)


def ggml_mul_mat_vec_a8(weight: torch.Tensor, x: torch.Tensor, quant_type: int, row: int) -> torch.Tensor:
    """Multiplies a few tokens by a weight, in 8 bits ("a8"): ggml_mul_mat_a8 for 1 to some 8 tokens.

    Arguments, result and errors are ggml_mul_mat_a8's.
    """
    return _ggml_mul_mat_vec_a8(weight, x, quant_type, row)


def ggml_mul_mat_a8(weight: torch.Tensor, x: torch.Tensor, quant_type: int, row: int) -> torch.Tensor:
    """Multiplies tokens by a weight, in 8 bits ("a8").

        result[t, r] = Σ_j x8[t, j] · weight[r, j]

    x8 is x rounded to 8 bits with a scale for each 32 neighbours: with amax the largest of their |x|, d = amax / 127
    and x8 = d · rint(x · (127 / amax)). So |x8 - x| ≤ amax / 254, within rounding. Sums are exact in int32 over 16 or
    32 products, then in f32. A token's result does not depend on the other tokens.

    On Hopper, where num_tokens · row · k is at least 2²⁸, x and the weight are rounded to float16 instead, which is
    nearer to them, and the order of the sums depends on the number of tokens. There an element of the weight is at most
    2047, or the results of its row are infinite or NaN.

    Args:
      weight: uint8 [row, bytes_per_row], contiguous.
      x: [num_tokens, k], float16, bfloat16 or float32; rows may be strided, the last dimension is dense. An infinite
        or NaN element makes its token's result NaN.
      quant_type: the block format, any of the module's list; k is a multiple of its block, 32 or 256, and at most
        2³⁰.
      row: the number of the weight's rows.

    Returns:
      [num_tokens, row], of x's dtype.

    Raises:
      ValueError: an unknown quant_type, a weight that is not `row` rows of k elements, or another wrong shape, dtype,
        stride or device.
    """
    return _ggml_mul_mat_a8(weight, x, quant_type, row)


def silu_and_mul_ggml_mul_mat_vec_a8(weight: torch.Tensor, x: torch.Tensor, quant_type: int, row: int) -> torch.Tensor:
    """silu_and_mul, then ggml_mul_mat_vec_a8; on a GPU one kernel where row < 8192 and num_tokens · row < 16384.

        y[t, j] = g / (1 + exp(-g)) · x[t, k + j],  g = x[t, j],  rounded to x's dtype
        result[t, r] = Σ_j y8[t, j] · weight[r, j]

    Args:
      weight: uint8 [row, bytes_per_row], contiguous: rows of k elements.
      x: [num_tokens, 2k], float16, bfloat16 or float32; rows may be strided, the last dimension is dense. k is at most
        65536.
      quant_type, row: ggml_mul_mat_a8's.

    Returns:
      [num_tokens, row], of x's dtype.

    Raises:
      ValueError: an unknown quant_type, or a shape, dtype, stride or device that is not as above.
    """
    return _silu_and_mul_ggml_mul_mat_vec_a8(weight, x, quant_type, row)


def add_rmsnorm_ggml_mul_mat_vec_a8(
    weight: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    quant_type: int,
    row: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """fused_add_rmsnorm, not in place, then ggml_mul_mat_vec_a8; one kernel where silu_and_mul_ggml_mul_mat_vec_a8 is.

        residual_sum[t, j] = x[t, j] + residual[t, j]
        y[t, j] = residual_sum[t, j] / sqrt(mean_j(residual_sum[t, :]²) + eps) · norm_weight[j],  rounded to x's dtype
        result[t, r] = Σ_j y8[t, j] · weight[r, j]

    Args:
      weight: uint8 [row, bytes_per_row], contiguous: rows of k elements.
      x, residual: [num_tokens, k], float16, bfloat16 or float32; rows may be strided, the last dimension is dense. k is
        at most 16384.
      norm_weight: [k], of x's dtype.
      eps: at least 0.
      quant_type, row: ggml_mul_mat_a8's.

    Returns:
      result [num_tokens, row], and residual_sum [num_tokens, k], of x's dtype.

    Raises:
      ValueError: an unknown quant_type, or a shape, dtype, stride or device that is not as above.
    """
    return _add_rmsnorm_ggml_mul_mat_vec_a8(weight, x, residual, norm_weight, eps, quant_type, row)


def ggml_moe_a8(
    input: torch.Tensor,
    weight: torch.Tensor,
    sorted_token_ids: torch.Tensor,
    expert_ids: torch.Tensor,
    num_token_post_padded: torch.Tensor,
    type: int,
    row: int,
    topk: int,
    tokens: int,
) -> torch.Tensor:
    """Multiplies each token by the weights of its experts, in 8 bits, the pairs of both sorted by expert.

        result[p, r] = Σ_j input8[p // topk, j] · weight[expert of p, r, j]

    Pair p is token p // topk with the expert that it chose as number p % topk. 8 bits and sums are those of
    ggml_mul_mat_a8 with few rows; a pair's result does not depend on the other pairs.

    Args:
      input: [tokens, k], float16, bfloat16 or float32; rows may be strided, the last dimension is dense.
      weight: uint8 [experts, row, bytes_per_row], contiguous.
      sorted_token_ids: int32 [S], as moe_align_block_size makes them for blocks of ggml_moe_get_block_size(): pairs,
        those of one expert in blocks of their own; what is no pair fills up a block. Each pair is there once; one that
        is missing has an undefined result.
      expert_ids: int32, at least one for each block: its expert. One that the weight does not have gives zeros.
      num_token_post_padded: int32, one element: how many of sorted_token_ids count.
      type: the block format, any of the module's list.
      row, topk, tokens: as above.

    Returns:
      [tokens · topk, row], of input's dtype.

    Raises:
      ValueError: an unknown type, or a shape, dtype, stride or device that is not as above.
    """
    return _ggml_moe_a8(input, weight, sorted_token_ids, expert_ids, num_token_post_padded, type, row, topk, tokens)


def ggml_moe_a8_vec(
    input: torch.Tensor, weight: torch.Tensor, topk_ids: torch.Tensor, top_k: int, type: int, row: int, tokens: int
) -> torch.Tensor:
    """ggml_moe_a8 for few tokens, with the experts as they were chosen.

    Args:
      topk_ids: int32, contiguous, the expert of each pair: tokens · top_k numbers. One that the weight does not have
        gives zeros.
      input, weight, top_k, type, row, tokens: ggml_moe_a8's, as are result and errors.
    """
    return _ggml_moe_a8_vec(input, weight, topk_ids, top_k, type, row, tokens)


def ggml_moe_get_block_size(type: int) -> int:
    """How many pairs share a block of ggml_moe_a8: the block size for moe_align_block_size; 0 for an unknown type."""
    return _block_size(type)
