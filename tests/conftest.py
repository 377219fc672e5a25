"""Tests marked `cuda` skip without a GPU, or a build for one, and say so. Where both are there, skipping all fails."""

import functools
import os

import pytest


@functools.cache
def why_no_cuda() -> str:
    """Why tests marked `cuda` cannot run here; empty if they can."""
    if not built_for_cuda():
        return "sgl_kernel is built for the CPU alone"
    import torch

    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU"


@functools.cache
def built_for_cuda() -> bool:
    import sgl_kernel

    try:
        targets = sgl_kernel.build_info()["targets"]
    except (ImportError, KeyError):  # a package that does not say: the tests will
        return True
    return any(target != "cpu" for each in targets.values() for target in each)


def must_run_cuda() -> bool:
    """This machine has a GPU (asked without torch) that the build is for. SGL_KERNEL_TEST_CUDA=0 waives it."""
    here = os.path.isdir("/proc/driver/nvidia/gpus") or os.path.exists("/dev/nvidia0")
    return here and built_for_cuda() and os.environ.get("SGL_KERNEL_TEST_CUDA", "1") != "0"


def pytest_configure(config):
    config.cuda_outcomes = {"ran": 0, "skipped": 0}


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and (reason := why_no_cuda()):
        item.config.cuda_outcomes["skipped"] += 1
        pytest.skip(reason)


def pytest_runtest_call(item):
    if item.get_closest_marker("cuda"):
        item.config.cuda_outcomes["ran"] += 1


def pytest_sessionfinish(session, exitstatus):
    outcomes = session.config.cuda_outcomes
    if outcomes["skipped"] and not outcomes["ran"] and exitstatus == 0 and must_run_cuda():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    outcomes = config.cuda_outcomes
    if outcomes["skipped"]:
        terminalreporter.write_line(f"skipped {outcomes['skipped']} cuda tests: {why_no_cuda()}", yellow=True)
        if not outcomes["ran"] and must_run_cuda():
            terminalreporter.write_line("which fails the run: there is a GPU (see tests/conftest.py)", red=True)
