"""torch.ops.sgl_kernel.*, and what the family modules share.

Every operator of every native module is registered when the package is imported, from the copy of their schemas that
the build made; a family's module is loaded at the first call of one of its operators. From then on torch (>= 2.10)
calls an operator's native function without Python, where the schema's arguments are all that it takes; its errors are
then ValueError and RuntimeError.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from sgl_kernel._index import SCHEMAS

_library = torch.library.Library("sgl_kernel", "FRAGMENT")
_implementations: dict[str, Callable[..., Any]] = {}
_fakes: dict[str, Callable[..., Any]] = {}


def implements(name: str):
    """Makes a function what `torch.ops.sgl_kernel.<name>` runs: for an operator that returns tensors, or that needs
    scratch space or seeds. It takes the schema's arguments. Without one, the native function runs as it is."""

    def register(function):
        _implementations[name] = function
        return function

    return register


def fakes(name: str):
    """Makes a function what torch.compile runs to learn the outputs of an operator that returns tensors: it takes the
    schema's arguments and returns empty tensors."""

    def register(function):
        _fakes[name] = function
        return function

    return register


def eager_or_traced(name: str, eager: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the schema's arguments: `eager` (the native function, or what `implements` the operator), or the
    torch operator while torch.compile traces, which sees mutations and shapes only there."""
    traced = getattr(torch.ops.sgl_kernel, name).default
    is_compiling = torch.compiler.is_compiling

    def call(*args):
        return traced(*args) if is_compiling() else eager(*args)

    return call


def two_forms(is_destination: Callable[[tuple, dict], bool], destination: Callable[..., Any]):
    """Lets a function be called in upstream's functional form, which is the one decorated, and in the destination form
    of torch.ops, outputs first; `is_destination(args, kwargs)` tells which was meant."""

    def decorate(functional):
        @functools.wraps(functional)
        def call(*args, **kwargs):
            if is_destination(args, kwargs):
                return destination(*args, **kwargs)
            return functional(*args, **kwargs)

        return call

    return decorate


def _family_module(family: str):
    return importlib.import_module(f"sgl_kernel.{family}")


def _register(family: str, schema: str) -> None:
    name = schema[: schema.index("(")]
    returns_tensors = not schema.endswith("-> ()")

    def run(*args):
        function = _implementations.get(name)
        if function is None:
            module = _family_module(family)
            function = _implementations.setdefault(name, getattr(module._native, name, None))
        return function(*args)

    def fake(*args):
        if not returns_tensors:
            return None
        if name not in _fakes:
            _family_module(family)
        return _fakes[name](*args)

    _library.define(schema)
    # What a native module registers for CPU and CUDA as it is loaded goes before `run`.
    for key, function in (("CompositeExplicitAutograd", run), ("Meta", fake)):
        _library.impl(name, function, key)


for _family, _schemas in SCHEMAS.items():
    for _schema in _schemas:
        _register(_family, _schema)
