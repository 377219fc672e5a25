"""The wheel, as its user gets it: installed by pip, imported from where it lies."""

import ast
import base64
import csv
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

_MAX_BYTES = 20 * 2**20  # with the targets cpu and sm_90a

_QUESTION = """
import sgl_kernel
info = sgl_kernel.build_info()
print(sgl_kernel.__file__)
print(info["version"], sgl_kernel.__version__)
print(",".join(info["targets"]["rmsnorm"]))
"""


@pytest.fixture(scope="module")
def wheel() -> pathlib.Path:
    (path,) = pathlib.Path("python").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target, wheel],
        check=True,
    )
    return target


def test_is_small(wheel):
    assert wheel.stat().st_size <= _MAX_BYTES


def test_record_lists_every_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (record,) = [name for name in archive.namelist() if name.endswith("/RECORD")]
        listed = {}
        for name, digest, size in csv.reader(archive.read(record).decode().splitlines()):
            listed[name] = digest
            if name != record:
                data = archive.read(name)
                expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                assert (digest, int(size)) == ("sha256=" + expected, len(data))
        assert sorted(listed) == sorted(archive.namelist())


def test_bytes_do_not_depend_on_the_day(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_says_what_it_was_built_from(installed):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    answer = subprocess.check_output([sys.executable, "-c", _QUESTION], cwd=installed, env=environment, text=True)
    path, versions, targets = answer.splitlines()
    version, said = versions.split()
    assert said == version
    assert pathlib.Path(path).is_relative_to(installed)
    assert next(installed.glob("*.dist-info")).name == f"sgl_kernel-{version}.dist-info"
    assert targets.split(",")[0] == "cpu"


def test_ships_types(installed):
    package = installed / "sgl_kernel"
    assert (package / "py.typed").exists()
    imported = [node for node in ast.parse((package / "__init__.pyi").read_text()).body if hasattr(node, "module")]
    assert "rmsnorm" in {name.name for node in imported for name in node.names}
    for node in imported:  # what the stub promises is there, under the name that it gives
        source = package.joinpath(*node.module.split(".")[1:])
        text = (source / "__init__.py" if source.is_dir() else source.with_suffix(".py")).read_text()
        assert all(re.search(rf'"{name.name}"', text) for name in node.names), node.module
