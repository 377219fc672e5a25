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


_NO_MORE_THREADS = """
import os
import resource
import torch
import sgl_kernel

x, weight = torch.randn(4096, 256), torch.ones(256)
expected = torch.nn.functional.rms_norm(x, (256,), weight, 1e-6)
sgl_kernel.rmsnorm(x[:1], weight)  # loads the module; one row needs no thread
with open("/proc/self/statm") as statm:
    in_use = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**28, resource.RLIM_INFINITY))  # room for some threads' stacks
out = sgl_kernel.rmsnorm(x, weight)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for _ in range(100):
    assert torch.equal(sgl_kernel.rmsnorm(x, weight), out)
torch.testing.assert_close(out, expected)
assert len(os.listdir("/proc/self/task")) < 1000
"""


def test_fewer_threads_than_asked_for():
    environment = {**os.environ, "SGL_KERNEL_NUM_THREADS": "1024", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", _NO_MORE_THREADS]
    result = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
