"""Python functions can be called as upstream's are: names, order and defaults of the parameters."""

import ast
import importlib
import inspect

import pytest

from tests.structure.repository import ROOT, sections

API = ROOT / "tests/structure/api/python_signatures.txt"

# What differs, and why.
EXCEPTIONS: dict[str, str] = {}

# Modules of families that are there as a whole, but for what is another family's.
COMPLETE = {"gemm": {"shuffle_rows"}, "marlin": set(), "quantization.gguf": set()}


def pinned_functions():
    for module, line in sections(API):
        function = ast.parse(f"def {line}: pass").body[0]
        yield pytest.param(module, function, id=f"{module}.{function.name}")


@pytest.mark.parametrize(("module", "pinned"), list(pinned_functions()))
def test_signature(module, pinned):
    import sgl_kernel

    if pinned.name in EXCEPTIONS:
        pytest.skip(EXCEPTIONS[pinned.name])
    try:
        ours = getattr(importlib.import_module(f"sgl_kernel.{module}"), pinned.name)
    except (ImportError, AttributeError):
        assert not hasattr(sgl_kernel, pinned.name), f"it exists, but not as sgl_kernel.{module}.{pinned.name}"
        assert pinned.name in COMPLETE.get(module, {pinned.name}), f"sgl_kernel.{module}.{pinned.name} is missing"
        pytest.skip("not there yet")
    parameters = list(inspect.signature(ours).parameters.values())
    expected = [*pinned.args.args, *pinned.args.kwonlyargs]
    assert [p.name for p in parameters[: len(expected)]] == [arg.arg for arg in expected]
    assert all(p.kind == p.POSITIONAL_OR_KEYWORD for p in parameters[: len(pinned.args.args)])
    assert getattr(sgl_kernel, pinned.name) is ours, "callers import it from sgl_kernel, too"
    required = [p.name for p in parameters[len(expected) :] if p.default is p.empty and p.kind != p.VAR_KEYWORD]
    assert not required, f"further parameters without defaults: {required}"
    positional = pinned.args.args
    defaults = [None] * (len(positional) - len(pinned.args.defaults)) + list(pinned.args.defaults)
    for parameter, default in zip(parameters, [*defaults, *pinned.args.kw_defaults], strict=False):
        if default is None:
            continue
        assert parameter.default is not parameter.empty, f"{parameter.name} has no default"
        try:
            value = ast.literal_eval(default)
        except ValueError:
            continue  # torch.float32 and the like
        assert parameter.default == value, (
            f"{parameter.name} defaults to {parameter.default!r}, upstream's to {value!r}"
        )
