"""Quantization of activations, and quantized weights."""

from sgl_kernel.quantization.awq import awq_dequantize
from sgl_kernel.quantization.fp4_quant import (
    scaled_fp4_experts_quant,
    scaled_fp4_grouped_quant,
    scaled_fp4_quant,
    silu_and_mul_scaled_fp4_grouped_quant,
)
from sgl_kernel.quantization.fp8_quant import _native as _native
from sgl_kernel.quantization.fp8_quant import sgl_per_tensor_quant_fp8, sgl_per_token_quant_fp8
from sgl_kernel.quantization.gguf import (
    add_rmsnorm_ggml_mul_mat_vec_a8,
    ggml_dequantize,
    ggml_moe_a8,
    ggml_moe_a8_vec,
    ggml_moe_get_block_size,
    ggml_mul_mat_a8,
    ggml_mul_mat_vec_a8,
    silu_and_mul_ggml_mul_mat_vec_a8,
)
from sgl_kernel.quantization.group_quant import (
    sgl_per_token_group_quant_8bit,
    sgl_per_token_group_quant_fp8,
    sgl_per_token_group_quant_int8,
)

__all__ = [
    "add_rmsnorm_ggml_mul_mat_vec_a8",
    "awq_dequantize",
    "ggml_dequantize",
    "ggml_moe_a8",
    "ggml_moe_a8_vec",
    "ggml_moe_get_block_size",
    "ggml_mul_mat_a8",
    "ggml_mul_mat_vec_a8",
    "scaled_fp4_experts_quant",
    "scaled_fp4_grouped_quant",
    "scaled_fp4_quant",
    "sgl_per_tensor_quant_fp8",
    "sgl_per_token_group_quant_8bit",
    "sgl_per_token_group_quant_fp8",
    "sgl_per_token_group_quant_int8",
    "sgl_per_token_quant_fp8",
    "silu_and_mul_ggml_mul_mat_vec_a8",
    "silu_and_mul_scaled_fp4_grouped_quant",
]
