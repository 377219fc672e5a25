"""The families that there are: //kernels/<family>, python/sgl_kernel/_<family>.cc."""

FAMILIES = [
    "attention",
    "elementwise",
    "gemm",
    "kvcacheio",
    "quantization",
    "sampling",
]
