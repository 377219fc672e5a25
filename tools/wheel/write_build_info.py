"""Writes sgl_kernel/_build_info.py: what the package was built from.

    write_build_info.py OUTPUT --version=V --compiler=GCC [--cuda=VERSION_FILE] --concept=norm.h=cpu,sm_90a ...

Each concept's header declares its operators; behind it stand the targets they are compiled for.
"""

import argparse
import json
import pathlib
import re
import subprocess

_COMMENT = re.compile(r"//.*?$|/\*.*?\*/", re.DOTALL | re.MULTILINE)
_OPERATOR = re.compile(r"^Status (\w+)\(", re.MULTILINE)


def operators(header: str) -> list[str]:
    """The functions that return a Status in the text of `header`."""
    return _OPERATOR.findall(_COMMENT.sub("", header))


def version_line(compiler: str) -> str:
    """What `compiler` calls itself, as "g++ (Debian 12.2.0-14) 12.2.0"."""
    return subprocess.check_output([compiler, "--version"], text=True).splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--version", required=True)
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--cuda", type=pathlib.Path)
    parser.add_argument("--concept", action="append", default=[], dest="concepts")
    args = parser.parse_args()

    targets = {}
    for concept in args.concepts:
        header, _, built = concept.rpartition("=")
        text = pathlib.Path(header).read_text(encoding="utf-8")
        targets |= {operator: built.split(",") for operator in operators(text)}

    lines = [
        '"""What this package was built from. Generated."""',
        "",
        "BUILD_INFO = {",
        f'    "version": {json.dumps(args.version)},',
        f'    "compiler": {json.dumps(version_line(args.compiler))},',
        f'    "cuda": {json.dumps(args.cuda.read_text().strip()) if args.cuda else None},',
        '    "targets": {',
        *(f"        {json.dumps(operator)}: {json.dumps(targets[operator])}," for operator in sorted(targets)),
        "    },",
        "}",
        "",
    ]
    args.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
