"""Every operator has its declaration, Python function, docstring, test and CPU target, and upstream's schema."""

import re

import pytest

from tests.harness.schema import parse_schema
from tests.structure.repository import ROOT, operators_under_test, schemas, sections

API = ROOT / "tests/structure/api/torch_schemas.txt"

# Operators that upstream's Python reaches under other names.
PYTHON_NAMES = {
    "fwd": "flash_attn_with_kvcache",
    "sgl_per_token_group_quant_8bit_v2": "sgl_per_token_group_quant_8bit",
    "silu_and_mul_scaled_fp4_experts_quant": "silu_and_mul_scaled_fp4_grouped_quant",
}

each_operator = pytest.mark.parametrize("name", sorted(schemas()))


def declaration(name: str):
    """The header that declares an operator, its lines, and the line of the declaration."""
    family, _ = schemas()[name]
    for path in sorted((ROOT / "kernels" / family).glob("*.h")):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if re.match(rf"Status {name}\(", line):
                return path, lines, number
    pytest.fail(f"no header in kernels/{family} declares Status {name}(…)")


@each_operator
def test_is_declared_with_its_contract(name):
    path, lines, number = declaration(name)
    # The comment above it or above the declarations that it stands in a block with; or the header's own.
    while number > 0 and lines[number - 1].strip() and not lines[number - 1].startswith("//"):
        number -= 1
    operators_here = sum(line.startswith("Status ") for line in lines)
    of_the_header = "\n".join(lines[: lines.index("#pragma once")])
    documented = lines[number - 1].startswith("//") or name in of_the_header or operators_here == 1
    if not documented or not of_the_header.startswith("//"):
        pytest.fail(f"{path.relative_to(ROOT)} declares {name} without a comment")


@each_operator
def test_has_a_cpu_target(name):
    path, _, _ = declaration(name)
    sources = [*path.parent.glob(f"{path.stem}_cpu.cc"), *path.parent.glob(f"{path.stem}_*_cpu.cc")]
    assert any("sgl_kernel::cpu" in source.read_text() for source in sources), (
        f"no {path.stem}*_cpu.cc in {path.parent.relative_to(ROOT)} defines anything in sgl_kernel::cpu"
    )


@each_operator
def test_has_a_documented_python_function(name):
    import sgl_kernel

    function = getattr(sgl_kernel, PYTHON_NAMES.get(name, name), None)
    assert function is not None, f"sgl_kernel.{PYTHON_NAMES.get(name, name)} is missing"
    assert function.__doc__ and function.__doc__.strip().endswith((".", "`")), f"{function.__name__} has no docstring"


@each_operator
def test_is_tested(name):
    if name not in operators_under_test():
        pytest.fail(f"no test has an Operator(name={name!r})")


@each_operator
def test_schema_is_upstreams(name):
    pinned = {s.name: s for s in (parse_schema(line) for _, line in sections(API))}
    if name not in pinned:
        pytest.skip("not an operator of upstream")
    _, ours = schemas()[name]
    upstream = pinned[name]
    assert [(a.type, a.name) for a in ours.arguments] == [(a.type, a.name) for a in upstream.arguments]
    assert ours.returns == upstream.returns
    unmarked = set(upstream.written) - set(ours.written)
    assert not unmarked, f"upstream marks {sorted(unmarked)} as written"


def test_registered_schemas_are_the_bindings():
    from tests.harness.schema import built_schemas

    built = built_schemas()
    # A build of some families is fine; another text is not.
    differing = [name for name, schema in built.items() if name in schemas() and schemas()[name][1] != schema]
    assert not differing
