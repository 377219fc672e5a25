"""Packs a wheel. The same files give the same bytes.

write_wheel.py OUTPUT --distribution=D --version=V --tag=cp311-cp311-linux_x86_64 --summary=S --license=LICENSE
    --strip_prefix=python/ --file=bin/python/package/module.so=python/package/module.so ...
"""

import argparse
import base64
import hashlib
import pathlib
import zipfile

_METADATA = """\
Metadata-Version: 2.4
Name: {distribution}
Version: {version}
Summary: {summary}
License-Expression: Apache-2.0
License-File: LICENSE
Requires-Python: =={python}.*
Provides-Extra: torch
Requires-Dist: torch; extra == "torch"
"""

_WHEEL = """\
Wheel-Version: 1.0
Generator: write_wheel
Root-Is-Purelib: false
Tag: {tag}
"""

# Zip knows no time before 1980.
_DATE = (1980, 1, 1, 0, 0, 0)


class Wheel:
    """A wheel being written: its files, and the RECORD of them."""

    def __init__(self, path: pathlib.Path, dist_info: str):
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9)
        self._dist_info = dist_info
        self._record = []

    def add(self, name: str, data: bytes) -> None:
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        self._record.append(f"{name},sha256={digest},{len(data)}")
        self._write(name, data)

    def add_info(self, name: str, text: str) -> None:
        self.add(f"{self._dist_info}/{name}", text.encode())

    def close(self) -> None:
        record = f"{self._dist_info}/RECORD"
        self._write(record, "\n".join([*self._record, f"{record},,", ""]).encode())
        self._zip.close()

    def _write(self, name: str, data: bytes) -> None:
        info = zipfile.ZipInfo(name, _DATE)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = (0o100755 if name.endswith(".so") else 0o100644) << 16
        self._zip.writestr(info, data)


def python_version(tag: str) -> str:
    """The Python of a tag: "3.11" of cp311-cp311-linux_x86_64."""
    digits = tag.split("-")[0].removeprefix("cp")
    return f"{digits[0]}.{digits[1:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--distribution", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--tag", required=True)
    parser.add_argument("--summary", required=True)
    parser.add_argument("--license", type=pathlib.Path, required=True)
    parser.add_argument("--strip_prefix", default="")
    parser.add_argument("--file", action="append", dest="files", required=True)
    args = parser.parse_args()

    wheel = Wheel(args.output, f"{args.distribution.replace('-', '_')}-{args.version}.dist-info")
    sources = [file.partition("=")[::2] for file in args.files]
    for path, name in sorted(sources, key=lambda source: source[1]):
        wheel.add(name.removeprefix(args.strip_prefix), pathlib.Path(path).read_bytes())
    wheel.add_info(
        "METADATA",
        _METADATA.format(
            distribution=args.distribution,
            version=args.version,
            summary=args.summary,
            python=python_version(args.tag),
        ),
    )
    wheel.add_info("WHEEL", _WHEEL.format(tag=args.tag))
    wheel.add_info("licenses/LICENSE", args.license.read_text(encoding="utf-8"))
    wheel.close()


if __name__ == "__main__":
    main()
