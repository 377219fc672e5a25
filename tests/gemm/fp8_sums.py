"""How exact Hopper's sums of e4m3 products are."""

import torch


def fp8_error(a, b):
    """What each sum of a [m, K] @ b [K, n] may be off by on Hopper's tensor cores: [m, n].

    They add 32 products and the sum so far at a time, cut off below u = 2^-13 of the largest of them, and cut the new
    sum off in the same way. What the K products lose has their signs and is less than u each: with random signs a
    standard deviation of at most u · sqrt(K / 3), of which eight are allowed. What the sums lose makes them smaller:
    up to u for each of K / 32. The largest is a product or a sum over a stretch of K, whichever a kernel takes.

    Products of one sign all lose towards zero, which can be K · u in all: more than this allows from some rows and
    K = 4096 on (see fp8_scaled_mm's docstring)."""
    k = a.shape[1]
    total = a.new_zeros(a.shape[0], b.shape[1])
    if k == 0:
        return total
    highest, lowest = total.clone(), total.clone()
    for start in range(0, k, 32):
        total.addmm_(a[:, start : start + 32], b[start : start + 32])
        torch.maximum(highest, total, out=highest)
        torch.minimum(lowest, total, out=lowest)
    largest = highest - lowest + a.abs().amax(1, keepdim=True) * b.abs().amax(0)
    return 2.0**-13 * (8 * (k / 3) ** 0.5 + k / 32) * largest
