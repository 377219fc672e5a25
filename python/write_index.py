"""Writes sgl_kernel/_index.py and sgl_kernel/__init__.pyi: what the package needs to know of its modules unloaded.

    write_index.py --index _index.py --stub __init__.pyi --native _elementwise.so … --module elementwise.py …

SCHEMAS  {family: schemas}, asked of the native modules
EXPORTS  {name: module}, from the `__all__` of the Python modules
MODULES  the Python modules themselves
"""

import argparse
import ast
import importlib.machinery
import importlib.util
import pathlib


def schemas_of(path: pathlib.Path) -> tuple[str, ...]:
    name = path.name.split(".")[0]
    loader = importlib.machinery.ExtensionFileLoader(name, str(path.resolve()))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return tuple(module.__schemas__)


def exports_of(path: pathlib.Path) -> list[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return ast.literal_eval(node.value)
    return []


def module_of(path: pathlib.Path) -> str:
    """sgl_kernel/quantization/gguf.py is quantization.gguf, sgl_kernel/quantization/__init__.py quantization."""
    parts = path.with_suffix("").parts
    parts = parts[len(parts) - parts[::-1].index("sgl_kernel") :]
    return ".".join(part for part in parts if part != "__init__")


def literal(name: str, value) -> str:
    """A constant in ruff's format, so that the generated file reads like the others."""
    if isinstance(value, dict):
        rows = [f"    {key!r}: {text!r},\n".replace("'", '"') for key, text in value.items()]
        return f"{name} = {{\n{''.join(rows)}}}\n"
    return f"{name} = {value!r}\n".replace("'", '"')


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--index", type=pathlib.Path, required=True)
    parser.add_argument("--stub", type=pathlib.Path, required=True)
    parser.add_argument("--native", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--module", type=pathlib.Path, nargs="*", default=[])
    args = parser.parse_args()

    schemas = {path.name.split(".")[0][1:]: schemas_of(path) for path in sorted(args.native)}
    modules = {module_of(path): exports_of(path) for path in sorted(args.module)}
    modules = {name: names for name, names in modules.items() if name and not name.startswith("_")}
    # A name that two modules export belongs to the first: a package re-exports what its modules define.
    exports = {name: module for module in sorted(modules, reverse=True) for name in modules[module]}

    header = '"""Written by the build from the modules; see write_index.py."""\n\n'
    args.index.write_text(
        header
        + literal("SCHEMAS", schemas)
        + literal("EXPORTS", dict(sorted(exports.items())))
        + literal("MODULES", tuple(sorted(name for name in modules if "." not in name)))
    )
    lines = [f"from sgl_kernel.{module} import {name} as {name}\n" for name, module in sorted(exports.items())]
    args.stub.write_text(header + "".join(lines) + "\n__version__: str\n\ndef build_info() -> dict: ...\n")


if __name__ == "__main__":
    main()
