"""What upstream keeps under this name: the cache write under its older name."""

from __future__ import annotations

import torch

from sgl_kernel.kvcacheio import store_kv_cache

__all__ = ["set_kv_buffer_kernel"]


def set_kv_buffer_kernel(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    loc: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    fallback: bool = False,
) -> None:
    """store_kv_cache(k_cache, v_cache, loc, k, v); with fallback, torch's indexing does it.

        k_cache[loc[t]] = k[t],  v_cache[loc[t]] = v[t]

    Arguments and errors are store_kv_cache's; the fallback's errors are torch's.
    """
    if fallback:
        k_cache[loc] = k
        v_cache[loc] = v
    else:
        store_kv_cache(k_cache, v_cache, loc, k, v)
