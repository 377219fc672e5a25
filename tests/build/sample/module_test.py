"""A module of kernels: it imports without CUDA and exports nothing but itself."""

import subprocess

import _sample


def test_calls_its_family():
    assert _sample.scale([1.0, 2.0], 3.0) == "cpu"


def test_needs_no_library_of_cuda_or_torch():
    needed = subprocess.check_output(["readelf", "--dynamic", _sample.__file__], text=True)
    for library in ("libcuda", "libcudart", "libtorch", "libc10", "libpython"):
        assert library not in needed


def test_exports_only_its_entry():
    exported = subprocess.check_output(
        ["nm", "--dynamic", "--defined-only", "--extern-only", _sample.__file__], text=True
    )
    functions = [line.split()[2] for line in exported.splitlines() if line.split()[1] == "T"]
    assert functions == ["PyInit__sample"]
