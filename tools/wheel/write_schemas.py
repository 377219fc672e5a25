"""Writes sgl_kernel/_schemas.py: a copy of the schemas that the families' modules hold.

    write_schemas.py OUTPUT _elementwise.so ...

With it `import sgl_kernel` registers every operator without loading a family. Imports neither torch nor sgl_kernel.
"""

import importlib.util
import json
import pathlib
import sys
from importlib.machinery import ExtensionFileLoader


def schemas_of(path: pathlib.Path) -> tuple[str, ...]:
    """The `__schemas__` of the extension module at `path`."""
    name = "sgl_kernel." + path.stem
    spec = importlib.util.spec_from_file_location(name, path, loader=ExtensionFileLoader(name, str(path)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(module.__schemas__)


def main(output: str, *modules: str) -> None:
    lines = ['"""The schemas of every family, as its module has them. Generated."""', "", "SCHEMAS = {"]
    for path in sorted(map(pathlib.Path, modules)):
        lines.append(f'    "{path.stem.removeprefix("_")}": (')
        lines += [f"        {json.dumps(schema)}," for schema in schemas_of(path)]
        lines.append("    ),")
    lines += ["}", ""]
    pathlib.Path(output).write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
