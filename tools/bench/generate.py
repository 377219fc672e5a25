"""The main job, tools/generate, on the GGUF file that SGL_KERNEL_TEST_MODEL names: a prompt, and the steps behind one,
which give a token to each sequence. Next to llama.cpp on a CPU, both with as many threads as processors.
"""

import os
import time
from types import SimpleNamespace as Inputs

import torch

from tools.bench.benchmark import Benchmark, Libraries

PROMPT = 512  # tokens
STEPS = 64
DEPTHS = [40, 512]  # tokens before the steps
BATCHES = [1, 4, 16, 64]  # on a GPU; on a CPU one sequence


def benchmarks(of: Libraries):
    path = os.environ.get("SGL_KERNEL_TEST_MODEL")
    if not path:
        return
    device = torch.device(of.device)
    ours, theirs = Ours(path, device), of.llama and Theirs(of.llama, path)
    yield comparison(of, "generate prefill", f"{PROMPT} tokens", ours.prefill_us, theirs and theirs.prefill_us)
    for depth in DEPTHS:
        yield comparison(
            of, "generate step", f"depth {depth}", ours.step_us(1, depth), theirs and theirs.step_us(depth)
        )
    if device.type == "cuda":
        for batch in BATCHES:
            yield comparison(of, "generate step", f"batch {batch}", ours.step_us(batch, DEPTHS[0]), None)


def comparison(of, op, shape, ours, theirs):
    implementations = of.implementations(kernels=ours, llama=theirs)
    return Benchmark(op, shape, Inputs, mode="itself", implementations=implementations)


def some_tokens(count: int) -> list[int]:
    return [100 + i % 1000 for i in range(count)]


class Ours:
    def __init__(self, path: str, device: torch.device):
        # Only here: what it needs is not needed by the other families.
        from tools.generate import generate
        from tools.generate.gguf_file import GgufFile
        from tools.generate.model import Model

        self._generate = generate
        self._device = device
        with torch.inference_mode():
            self._model = Model(GgufFile(path), device)

    def prefill_us(self, _) -> float:
        return self._run(1, PROMPT, 0)[0]

    def step_us(self, batch: int, depth: int):
        return lambda _: self._run(batch, depth, STEPS)[1] / STEPS

    @torch.inference_mode()
    def _run(self, batch: int, depth: int, steps: int) -> tuple[float, float]:
        """µs of the prompt, and of the steps behind it."""
        threads = torch.get_num_threads()
        if self._device.type == "cpu":
            torch.set_num_threads(1)  # as the command does
        sampler = self._generate.Sampler(0.0, 0, 1.0, 0, self._device)
        cache = self._model.new_cache(batch, depth + steps + 1)
        begin = time.perf_counter()
        first = sampler(self._generate.prefill(self._model, cache, [some_tokens(depth)] * batch))
        first.tolist()  # waits for the GPU
        middle = time.perf_counter()
        if steps:
            decoder = self._generate.Decoder(self._model, cache, sampler, first.clone(), [depth] * batch)
            middle = time.perf_counter()
            for _ in self._generate.tokens_of(decoder, first, steps + 1):
                pass
        end = time.perf_counter()
        torch.set_num_threads(threads)
        return (middle - begin) * 1e6, (end - middle) * 1e6


class Theirs:
    def __init__(self, llama_cpp, path: str):
        threads = len(os.sched_getaffinity(0))
        self._model = llama_cpp.Llama(
            path, n_ctx=PROMPT + STEPS + 1, n_batch=PROMPT, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def prefill_us(self, _) -> float:
        self._model.reset()
        begin = time.perf_counter()
        self._model.eval(some_tokens(PROMPT))
        return (time.perf_counter() - begin) * 1e6

    def step_us(self, depth: int):
        def run(_):
            self._model.reset()
            self._model.eval(some_tokens(depth))
            begin = time.perf_counter()
            for token in some_tokens(STEPS):
                self._model.eval([token])
            return (time.perf_counter() - begin) * 1e6 / STEPS

        return run
