"""How exact Hopper's sums of e4m3 products are."""

import torch

STRETCH = 4096  # of K: fp8_scaled_mm


def fp8_error(a, b, stretch=STRETCH):
    """What each sum of a [m, K] @ b [K, n] may be off by on Hopper's tensor cores: [m, n].

    The tensor cores sum `stretch` of K at a time, and float32 the rest. They add 32 products and the sum so far at a
    time, cut off below u = 2^-13 of the largest of them, and cut the new sum off in the same way. What the L products
    of a stretch lose has their signs and is less than u each: with random signs a standard deviation of at most
    u · sqrt(L / 3), of which eight are allowed; with one sign u / 2 on average, where u grows with the sum and so is
    half of the last one's on average. What the sums lose makes them smaller: up to u for each of L / 32. The largest is
    a product or a sum over a part of the stretch, whichever a kernel takes."""
    error = a.new_zeros(a.shape[0], b.shape[1])
    for start in range(0, a.shape[1], stretch):
        error += _error_of_stretch(a[:, start : start + stretch], b[start : start + stretch])
    return error


def _error_of_stretch(a, b):
    length = a.shape[1]
    total = a.new_zeros(a.shape[0], b.shape[1])
    highest, lowest = total.clone(), total.clone()
    for start in range(0, length, 32):
        total.addmm_(a[:, start : start + 32], b[start : start + 32])
        torch.maximum(highest, total, out=highest)
        torch.minimum(lowest, total, out=lowest)
    largest = highest - lowest + a.abs().amax(1, keepdim=True) * b.abs().amax(0)
    of_one_sign = (a.sign() @ b.sign()).abs()
    return 2.0**-13 * (8 * (length / 3) ** 0.5 + of_one_sign / 4 + length / 32) * largest
