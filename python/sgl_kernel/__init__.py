"""The compute kernels that an LLM server calls.

    import sgl_kernel
    sgl_kernel.rmsnorm(x, weight)                                     # returns the result
    sgl_kernel.rmsnorm(out, x, weight, eps=1e-6, enable_pdl=True)     # writes it
    torch.ops.sgl_kernel.rmsnorm(out, x, weight, 1e-6, True)          # for torch.compile

Importing this loads no kernel: a family's native module is loaded when one of its names is first used. Wrong arguments
raise ValueError or TypeError, a GPU that no built target serves NotImplementedError, an error of CUDA's RuntimeError;
the text names the operator, the argument, what it is and what was expected.
"""

from __future__ import annotations

import importlib

from sgl_kernel import _ops as _ops
from sgl_kernel._index import EXPORTS, MODULES

__version__ = "0.3.21.post1"


def build_info() -> dict:
    """What this package was built from: version, compiler, CUDA, and the targets of each operator."""
    from sgl_kernel import _build_info

    return dict(_build_info.BUILD_INFO)


def __getattr__(name: str):
    if name in EXPORTS:
        value = getattr(importlib.import_module(f"sgl_kernel.{EXPORTS[name]}"), name)
        globals()[name] = value  # the next use does not come here
        return value
    if name in MODULES:
        return importlib.import_module(f"sgl_kernel.{name}")
    raise AttributeError(f"module 'sgl_kernel' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *EXPORTS, *MODULES])
