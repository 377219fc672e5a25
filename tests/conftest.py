"""Tests marked `cuda` skip without a GPU, and say so; on a GPU host a run in which none of them ran fails."""

import functools
import os

import pytest


@functools.cache
def why_no_cuda() -> str:
    """Why tests marked `cuda` cannot run here; empty if they can."""
    import torch

    if not torch.cuda.is_available():
        return "no GPU" if torch.version.cuda else f"no GPU in torch {torch.__version__}"
    import sgl_kernel

    try:
        targets = sgl_kernel.build_info()["targets"]
    except (ImportError, KeyError):  # a package that does not say: find out by trying
        return ""
    built = {target for each in targets.values() for target in each}
    return "" if built - {"cpu"} else "sgl_kernel is built for the CPU alone"


def gpu_is_here() -> bool:
    """Whether this machine has a GPU, asked without torch."""
    return os.path.isdir("/proc/driver/nvidia/gpus") or os.path.exists("/dev/nvidia0")


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
    # SGL_KERNEL_TEST_CUDA=0 lets a build for the CPU be tested on a GPU host.
    wanted = gpu_is_here() and os.environ.get("SGL_KERNEL_TEST_CUDA", "1") != "0"
    if wanted and outcomes["skipped"] and not outcomes["ran"] and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    outcomes = config.cuda_outcomes
    if outcomes["skipped"]:
        terminalreporter.write_line(f"skipped {outcomes['skipped']} cuda tests: {why_no_cuda()}", yellow=True)
        if gpu_is_here() and not outcomes["ran"]:
            terminalreporter.write_line(
                "this machine has a GPU: see SGL_KERNEL_TEST_CUDA in tests/conftest.py", red=True
            )
