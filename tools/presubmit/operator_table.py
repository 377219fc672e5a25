"""The README's table of operators by target, from the headers and the BUILD files.

tools/presubmit/operator_table.py            prints it
tools/presubmit/operator_table.py --write    puts it into README.md
"""

import argparse
import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGETS = ["cpu", "sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"]
RUNS, OWN_KERNEL = "●", "◆"
# Of concepts whose other operators have kernels of their own.
PORTABLE = {
    "gptq_shuffle",
    "ggml_dequantize",
    "ggml_mul_mat_vec_a8",
    "silu_and_mul_ggml_mul_mat_vec_a8",
    "add_rmsnorm_ggml_mul_mat_vec_a8",
    "ggml_moe_a8",
    "ggml_moe_a8_vec",
}
BEGIN, END = "<!-- operators -->\n", "<!-- /operators -->\n"


def concepts(family: pathlib.Path):
    """(name, targets) of each kernel_library line."""
    for node in ast.walk(ast.parse((family / "BUILD").read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "kernel_library":
            arguments = {keyword.arg: keyword.value for keyword in node.keywords}
            named = ast.literal_eval(arguments["targets"]) if "targets" in arguments else TARGETS[1:]
            yield ast.literal_eval(arguments["name"]), ["cpu", *named]


def table() -> str:
    rows = [f"| operator | {' | '.join(TARGETS)} |", "|---" * (len(TARGETS) + 1) + "|"]
    for build in sorted(ROOT.glob("kernels/*/BUILD")):
        family = build.parent
        listed = list(concepts(family))
        if listed:
            rows.append(f"| **{family.name}** |{' |' * len(TARGETS)}")
        for concept, targets in listed:
            own = {t for t in TARGETS if [*family.glob(f"{concept}*_{t.replace('_', '')}.cu")]}
            header = (family / f"{concept}.h").read_text()
            for operator in re.findall(r"^Status (\w+)\(", header, re.MULTILINE):
                own_here = own if operator not in PORTABLE else set()
                marks = [OWN_KERNEL if t in own_here else RUNS if t in targets else "" for t in TARGETS]
                rows.append(f"| `{operator}` | {' | '.join(marks)} |")
    return "\n".join(rows) + "\n"


def in_readme() -> str:
    return (ROOT / "README.md").read_text().split(BEGIN)[1].split(END)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        print(table(), end="")
        return
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
