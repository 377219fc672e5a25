"""Quantized weights: the block formats of ggml."""

from sgl_kernel.quantization.gguf import _native as _native
from sgl_kernel.quantization.gguf import ggml_dequantize, ggml_mul_mat_a8, ggml_mul_mat_vec_a8

__all__ = ["ggml_dequantize", "ggml_mul_mat_a8", "ggml_mul_mat_vec_a8"]
