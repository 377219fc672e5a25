"""What a benchmark is: inputs, the work that they mean, and who does it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch


@dataclass
class Benchmark:
    """One operation on one shape.

    `make()` gives a set of inputs on the current default device; `implementations` are functions of such a set, by the
    name of the library. `bytes` and `flops` are the least that the operation has to move and to compute: each input
    read once, each output written once.
    """

    op: str
    shape: str
    make: Callable[[], SimpleNamespace]
    bytes: int = 0
    flops: int = 0
    implementations: dict[str, Callable[[SimpleNamespace], object]] = field(default_factory=dict)
    # "graph": in a CUDA graph, what a server's decode step sees. "host": time of the caller, for queued eager calls.
    # "itself": an implementation measures itself, and returns the µs.
    mode: str = "graph"

    @property
    def fits_cpu(self) -> bool:
        """Small enough for a CPU to be measured in a second."""
        return self.bytes < 2**28 and self.flops < 10**11


@dataclass
class Libraries:
    """The libraries that this process measures. A missing one is None, and so is what a library lacks."""

    kernels: object  # a package of the name sgl_kernel: ours, or a peer's
    label: str  # how it is named in the results
    device: str  # "cpu" or "cuda"
    flashinfer: object = None
    torch: object = None
    llama: object = None

    def implementations(self, **candidates) -> dict:
        """{"sgl_kernel": f, …} without the libraries that are not there. Written as kernels=, flashinfer=, torch=;
        a further word after the library tells variants apart: torch_cudnn=."""
        found = {}
        for name, function in candidates.items():
            library, _, variant = name.partition("_")
            if getattr(self, library) is not None and function is not None:
                label = self.label if library == "kernels" else library
                found[f"{label} {variant}".strip()] = function
        return found


def has(library, *names) -> bool:
    """Whether a library (or a module of it, "sampling.top_p_renorm_probs") has all of these."""
    for name in names:
        value = library
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is None:
            return False
    return True


def tensors_of(inputs: SimpleNamespace) -> list[torch.Tensor]:
    return [value for value in vars(inputs).values() if isinstance(value, torch.Tensor)]
