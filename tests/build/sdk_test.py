"""The SDK, as a C++ server gets it: unpacked, found by CMake, linked, run."""

import pathlib
import re
import subprocess
import sys
import tarfile

import pytest

_CONSUMER = pathlib.Path("tests/build/consumer").resolve()
_CMAKE = pathlib.Path(sys.executable).with_name("cmake")
_NINJA = pathlib.Path(sys.executable).with_name("ninja")


@pytest.fixture(scope="module")
def sdk(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("sdk")
    with tarfile.open("kernels/sdk.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    return folder / "sgl_kernel"


def test_consumer_builds_and_runs(sdk, tmp_path):
    options = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_NINJA}", f"-DCMAKE_PREFIX_PATH={sdk}"]
    subprocess.run([_CMAKE, "-S", _CONSUMER, "-B", tmp_path, *options], check=True)
    subprocess.run([_CMAKE, "--build", tmp_path], check=True)
    ran = subprocess.run([tmp_path / "consumer"], stdout=subprocess.PIPE, text=True)
    assert ran.returncode == 0, ran.stdout
    assert "rmsnorm: weight" in ran.stdout


def test_each_header_stands_alone(sdk, tmp_path):
    headers = sorted((sdk / "include" / "kernels").rglob("*.h"))
    assert headers
    for header in headers:
        if header.name == "launch.h":  # the one that needs CUDA's
            continue
        source = tmp_path / "include.cc"
        source.write_text(f'#include "{header.relative_to(sdk / "include")}"\n')
        subprocess.run(["g++", "-std=c++20", "-Wall", "-fsyntax-only", f"-I{sdk}/include", source], check=True)


def test_libraries_hold_nothing_of_python_or_torch(sdk):
    for library in sorted((sdk / "lib").glob("libsgl_kernel_*.a")):
        undefined = subprocess.check_output(["nm", "--undefined-only", library], text=True)
        assert not re.search(r"\bPy[A-Z]\w*|torch|c10", undefined), library.name


def test_names_no_path_of_the_machine_that_built_it(sdk):
    for file in (sdk / "lib" / "cmake").rglob("*.cmake"):
        assert not re.search(r'[" ]/', file.read_text()), file.name
