"""The CPU threads of a process that uses several families."""

import os
import subprocess
import sys

_SCRIPT = """
import os
import torch
import sgl_kernel

torch.set_num_threads(1)
before = len(os.listdir("/proc/self/task"))
x = torch.randn(4096, 256)
sgl_kernel.rmsnorm(x, torch.ones(256))
sgl_kernel.ggml_dequantize(torch.zeros(4096 * 34, dtype=torch.uint8), 8, 4096, 32)
sgl_kernel.merge_state(*[torch.randn(4096, 8, s) if s else torch.randn(4096, 8) for s in (64, 0, 64, 0)])
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_families_share_their_threads():
    # A set a family would have threads that wait, spinning, on the processors that another family's need.
    environment = {**os.environ, "SGL_KERNEL_NUM_THREADS": "3"}
    result = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == 2  # and the caller's own
