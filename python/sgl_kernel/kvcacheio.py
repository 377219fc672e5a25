"""Moving keys and values into and between caches."""

from __future__ import annotations

import torch

from sgl_kernel import _kvcacheio as _native
from sgl_kernel._ops import eager_or_traced

__all__ = ["store_kv_cache"]

_store_kv_cache = eager_or_traced("store_kv_cache", _native.store_kv_cache)


def store_kv_cache(
    k_cache: torch.Tensor, v_cache: torch.Tensor, out_loc: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> None:
    """Writes the keys and values of new tokens to their slots of a cache.

        k_cache[out_loc[t]] = k[t],  v_cache[out_loc[t]] = v[t]

    Args:
      k_cache, v_cache: [S, ...], of any one dtype; rows, and heads within them, may be strided.
      out_loc: [T], int32 or int64, from 0 to S - 1. Of tokens that share a slot, which one stays is not defined.
      k, v: [T, ...], of that dtype, with as many elements a row as their cache.

    Slots out of range are a ValueError; on a GPU they are looked at under SGL_KERNEL_CHECK=1 alone.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
    """
    _store_kv_cache(k_cache, v_cache, out_loc, k, v)
