"""Sampling from a vocabulary of 151936, probabilities the softmax of normal logits of standard deviation 3."""

from types import SimpleNamespace as Inputs

import torch

from tools.bench.benchmark import Benchmark, Libraries, has

VOCABULARY = 151936
TOP_K, TOP_P, MIN_P = 50, 0.9, 0.05

# Name → arguments behind probs, whether it writes a tensor like probs.
OPERATIONS = {
    "top_k_top_p joint": ("top_k_top_p_sampling_from_probs", (TOP_K, TOP_P), {"filter_apply_order": "joint"}, False),
    "top_k_top_p top_k_first": ("top_k_top_p_sampling_from_probs", (TOP_K, TOP_P), {}, False),
    "top_p": ("top_p_sampling_from_probs", (TOP_P,), {}, False),
    "min_p": ("min_p_sampling_from_probs", (MIN_P,), {}, False),
    "top_k_renorm": ("top_k_renorm_probs", (TOP_K,), {}, True),
    "top_p_renorm": ("top_p_renorm_probs", (TOP_P,), {}, True),
}


def sorted_top_p(probs):
    """Top-p by a sort of the vocabulary, as it is written without a kernel library."""
    values, order = probs.sort(dim=-1, descending=True)
    values[values.cumsum(-1) - values > TOP_P] = 0
    return order.gather(-1, torch.multinomial(values, 1))


def benchmarks(of: Libraries):
    for batch in (1, 16, 128):
        for label, (name, arguments, keywords, writes) in OPERATIONS.items():

            def call(library, name=name, arguments=arguments, keywords=keywords):
                if not has(library, name):
                    return None
                return lambda s: getattr(library, name)(s.probs, *arguments, **keywords)

            yield Benchmark(
                label,
                f"{batch}x{VOCABULARY}",
                lambda batch=batch: Inputs(probs=torch.randn(batch, VOCABULARY).mul_(3).softmax(-1)),
                bytes=4 * batch * VOCABULARY * (2 if writes else 1),
                implementations=of.implementations(
                    kernels=call(of.kernels),
                    flashinfer=call(getattr(of.flashinfer, "sampling", None)),
                    torch_sort=(lambda s: sorted_top_p(s.probs)) if label == "top_p" else None,
                ),
            )
