"""What a build says that cannot be done: the cause, in words of ours.

Runs Bazel, so it is no test of Bazel's:  python3 -m pytest tests/build/errors_test.py
"""

import os
import pathlib
import subprocess

import pytest

_ROOT = pathlib.Path(__file__).parents[2]


def bazelw(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [_ROOT / "bazelw", *arguments],
        cwd=_ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def apart(tmp_path):
    """Options for a Bazel that shares nothing with the checkout's: it fetches everything anew."""
    options = (f"--output_base={tmp_path}/output", "--max_idle_secs=15")
    yield options
    bazelw(*options, "shutdown")


def test_no_interpreter():
    ran = bazelw("version", PYTHON_BIN_PATH="/nonexistent/python3")
    assert ran.returncode == 1
    assert ran.stdout == "bazelw: no Python interpreter at /nonexistent/python3 (PYTHON_BIN_PATH)\n"


def test_no_interpreter_within_bazel(apart):
    ran = bazelw(*apart, "build", "--repo_env=PYTHON_BIN_PATH=/nonexistent/python3", "//kernels/base")
    assert ran.returncode != 0
    assert "no Python interpreter at /nonexistent/python3: install python3 or set PYTHON_BIN_PATH" in ran.stdout


def test_package_index_out_of_reach(apart):
    nowhere = ["--repo_env=PIP_INDEX_URL=file:///nonexistent", "--repo_env=PIP_CONFIG_FILE=/dev/null"]
    ran = bazelw(*apart, "build", *nowhere, "//kernels/base")
    assert ran.returncode != 0
    assert ": the package index is out of reach or does not have it" in ran.stdout


def test_target_that_does_not_exist(tmp_path):
    package = tmp_path / "concept"
    package.mkdir()
    package.joinpath("BUILD").write_text(
        'load("//tools/build:kernels.bzl", "kernel_library")\n'
        'kernel_library(name = "norm", targets = ["sm_80", "sm_91"])\n'
    )
    ran = bazelw("query", f"--package_path=%workspace%:{tmp_path}", "//concept:all")
    assert ran.returncode != 0
    assert "norm: there is no SM target sm_91, only sm_80, sm_89, sm_90a, sm_100a, sm_120a" in ran.stdout


def test_config_that_does_not_exist():
    ran = bazelw("build", "--config=sm_91", "//kernels/base")
    assert ran.returncode != 0
    assert "Config value 'sm_91' is not defined" in ran.stdout
