"""The source tree as the tests of its rules see it."""

import functools
import importlib.util
import pathlib
import re
import sys

from tests.harness import OPERATORS
from tests.harness.schema import Schema, parse_schema

# Under Bazel this file is a link into the source tree: the rules are about all of that, not about what a sandbox holds.
ROOT = pathlib.Path(__file__).resolve().parents[2]

SOURCES = {".h", ".cc", ".cu", ".cuh", ".py", ".bzl"}


def files(*folders: str, suffixes=SOURCES) -> list[pathlib.Path]:
    """Sources below some folders of the repository."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(ROOT).parts))


@functools.cache
def schemas() -> dict[str, tuple[str, Schema]]:
    """Operator → its family and schema, read from the bindings."""
    found = {}
    for path in sorted((ROOT / "python/sgl_kernel").glob("_*.cc")):
        text = path.read_text()
        for literal in re.findall(r'ops\.def<&\w+>\(\s*((?:"[^"]*"\s*)+)', text):
            schema = parse_schema("".join(re.findall(r'"([^"]*)"', literal)))
            found[schema.name] = (path.stem[1:], schema)
    assert found, "no ops.def() in python/sgl_kernel"
    return found


def sections(path: pathlib.Path):
    """(section, line) for each line of a file of [sections]."""
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            yield section, line


@functools.cache
def operators_under_test() -> frozenset[str]:
    """The names of all Operators in the repository's tests."""
    for path in (ROOT / "tests").rglob("*_test.py"):
        if "operator_tests(" not in path.read_text() or path.parent == ROOT / "tests/harness":
            continue
        name = f"structure_import_{path.parent.name}_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return frozenset(operator.name for operator in OPERATORS)
