"""Probabilities that are hard for the search of a threshold."""

import torch


def hard_rows(vocab: int) -> dict[str, torch.Tensor]:
    """Rows [vocab] by name, in which an estimate from a sample of the values is wrong, or much lies where it points."""
    generator = torch.Generator().manual_seed(vocab)

    def softmax(spread):
        return torch.softmax(torch.randn(vocab, generator=generator) * spread, -1)

    one, few, nan, inf, unseen = torch.zeros(vocab), torch.zeros(vocab), softmax(3.0), softmax(1.0), softmax(1.0)
    one[vocab // 3] = 1.0
    few[torch.randperm(vocab, generator=generator)[:30]] = torch.rand(30, generator=generator)
    nan[::3] = float("nan")
    inf[7] = float("inf")
    run = torch.arange(vocab) // 16
    unseen[(run // 128 + run) % 16 == 0] *= 1e-3  # of large batches the sample on a GPU sees nothing else
    return {
        "spread": softmax(8.0),
        "flat": softmax(0.1),
        "one": one,
        "few": few,
        "zeros": torch.zeros(vocab),
        "equal": torch.full((vocab,), 1.0 / vocab),
        "levels": torch.randint(1, 17, (vocab,), generator=generator) / (8.5 * vocab),
        "bfloat16": torch.softmax((torch.randn(vocab, generator=generator) * 3).bfloat16().float(), -1),
        "descending": softmax(2.0).sort(descending=True).values,
        "ascending": softmax(2.0).sort().values,
        "unseen": unseen,
        "tiny": softmax(2.0) * 1e-20,
        "huge": softmax(2.0) * 1e30,
        "NaN": nan,
        "infinity": inf,
    }
