"""Writes text with a GGUF language model through sgl_kernel's operators.

    ./bazelw run //tools/generate -- --prompt="The capital of France is"

Only the text goes to stdout; progress and speed go to stderr.
"""

from __future__ import annotations

import math
import os
import pathlib
import sys
import time

import torch
from absl import app, flags

import sgl_kernel
from tools.generate.gguf_file import GgufError, GgufFile
from tools.generate.model import KVCache, Model, advance
from tools.generate.text import TextCodec

_PROMPT = flags.DEFINE_multi_string("prompt", ["The capital of France is"], "What to continue. Repeated: a batch.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 128, "New tokens of each sequence, at most.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token.", lower_bound=0.0)
_TOP_K = flags.DEFINE_integer("top_k", 40, "Sample from the k likeliest tokens; 0 for all.", lower_bound=0)
_TOP_P = flags.DEFINE_float("top_p", 0.95, "Sample from the likeliest tokens that sum up to p.", 0.0, 1.0)
_SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same text.", -(2**63), 2**64 - 1)
_DEVICE = flags.DEFINE_enum("device", "auto", ["auto", "cpu", "cuda"], "auto is cuda where there is a GPU.")
_MODEL = flags.DEFINE_string("model", None, "A GGUF file; by default SmolLM2-135M-Instruct.")
_CHAT = flags.DEFINE_boolean("chat", False, "Wrap each prompt in the model's chat template.")

for _flag in (_TEMPERATURE, _TOP_P):  # NaN lies within all bounds
    flags.register_validator(_flag.name, lambda value: not math.isnan(value), "must be a number")

PREFILL_CHUNK = 512  # tokens of a prompt between two lines of progress


class Sampler:
    """Picks the next token of each sequence from its logits."""

    def __init__(self, temperature: float, top_k: int, top_p: float, seed: int, device: torch.device):
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._generator = torch.Generator(device=device).manual_seed(seed)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if self._temperature == 0.0 and logits.device.type == "cpu":
            return torch.from_numpy(logits.numpy().argmax(axis=-1))  # a tenth of the time of torch's
        if self._temperature == 0.0:
            return logits.argmax(dim=-1)
        logits = logits.float()
        # From the highest on, so that a temperature next to 0 divides nothing up to infinity.
        probs = torch.softmax((logits - logits.amax(dim=-1, keepdim=True)) / self._temperature, dim=-1)
        top_k = self._top_k or logits.shape[-1]
        return sgl_kernel.top_k_top_p_sampling_from_probs(
            probs, top_k, self._top_p, filter_apply_order="joint", generator=self._generator
        ).long()

    def register(self, graph: torch.cuda.CUDAGraph) -> None:
        """Lets a graph draw other numbers at each replay."""
        graph.register_generator_state(self._generator)


class Decoder:
    """Decode steps after a prefill: tokens in, tokens out, on the CPU one by one, on a GPU as a replayed graph."""

    def __init__(self, model: Model, cache: KVCache, sampler: Sampler, tokens: torch.Tensor, lengths: list[int]):
        self._model, self._cache, self._sampler = model, cache, sampler
        self._batch = cache.decode(tokens, lengths)
        self._graph = None
        if model.device.type == "cuda" and not model.config.num_experts:
            self._capture()

    def _step(self) -> None:
        advance(self._batch, self._sampler(self._model.forward(self._batch, self._cache)))

    def _capture(self) -> None:
        """Runs one step to warm up, puts its inputs back, and captures it."""
        state = [self._batch.tokens, self._batch.counters]
        before = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        self._sampler.register(graph)
        with torch.cuda.graph(graph):
            self._step()
        self._graph = graph

    def step(self) -> torch.Tensor:
        """The next token of each sequence, in memory that the next step overwrites."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._step()
        return self._batch.tokens


def prefill(model: Model, cache: KVCache, prompts: list[list[int]]) -> torch.Tensor:
    """Logits behind each prompt: [B, vocab]. A single long prompt goes in chunks, with progress."""
    if len(prompts) > 1:
        return model.forward(cache.prefill(prompts), cache)
    prompt, logits = prompts[0], None
    for begin in range(0, len(prompt), PREFILL_CHUNK):
        batch = cache.prefill([prompt[: begin + PREFILL_CHUNK]])
        batch.tokens, batch.positions, batch.slots = (
            tensor[begin:] for tensor in (batch.tokens, batch.positions, batch.slots)
        )
        batch.max_new = batch.tokens.shape[0]
        batch.cu_seqlens = torch.tensor([0, batch.max_new], dtype=torch.int32, device=model.device)
        logits = model.forward(batch, cache)
        if len(prompt) > PREFILL_CHUNK:
            print(f"prefill: {min(begin + PREFILL_CHUNK, len(prompt))} of {len(prompt)} tokens", file=sys.stderr)
    return logits


def tokens_of(decoder: Decoder, first: torch.Tensor, count: int):
    """Yields lists of a token a sequence. On a GPU the host reads step n while step n + 1 runs."""
    if first.device.type == "cpu":
        yield first.tolist()
        for _ in range(count - 1):
            yield decoder.step().tolist()
        return
    copies = [torch.empty(first.shape, dtype=first.dtype, pin_memory=True) for _ in range(2)]
    events = [torch.cuda.Event() for _ in range(2)]
    copies[0].copy_(first, non_blocking=True)
    events[0].record()
    for i in range(1, count + 1):
        if i < count:
            copies[i % 2].copy_(decoder.step(), non_blocking=True)
            events[i % 2].record()
        events[(i - 1) % 2].synchronize()
        yield copies[(i - 1) % 2].tolist()


def generate(model: Model, codec: TextCodec, prompts: list[list[int]], sampler: Sampler, max_tokens: int, out) -> None:
    """Writes what follows each prompt: a single one as it comes, several one after another, a line apart."""
    longest = max(len(prompt) for prompt in prompts)
    if longest + max_tokens > model.config.context:
        raise GgufError(
            f"a prompt of {longest} tokens and --max_tokens={max_tokens} exceed the model's context of "
            f"{model.config.context} tokens"
        )
    cache = model.new_cache(len(prompts), longest + max_tokens)
    start = time.perf_counter()
    first = sampler(prefill(model, cache, prompts))
    first_ids = first.tolist()  # waits for the GPU
    prefill_seconds = time.perf_counter() - start

    decoder = Decoder(model, cache, sampler, first.clone(), [len(prompt) for prompt in prompts])
    streams = [codec.stream() for _ in prompts]
    texts = ["" for _ in prompts]
    running = [True for _ in prompts]
    num_tokens = 0
    start = time.perf_counter()
    for ids in tokens_of(decoder, torch.tensor(first_ids, device=model.device), max_tokens):
        for i, token in enumerate(ids):
            running[i] = running[i] and token not in codec.end_tokens
            if running[i]:
                piece = streams[i].push(token)
                num_tokens += 1
                texts[i] += piece
                if len(prompts) == 1:
                    out.write(piece)
                    out.flush()
        if not any(running):
            break
    decode_seconds = time.perf_counter() - start
    if len(prompts) == 1:
        out.write(streams[0].finish() + "\n")
    else:
        out.write("\n".join(text + stream.finish() for text, stream in zip(texts, streams, strict=True)) + "\n")
    out.flush()
    prompt_tokens = sum(len(prompt) for prompt in prompts)
    decoded = num_tokens - sum(token not in codec.end_tokens for token in first_ids)
    print(
        f"prefill: {prompt_tokens} tokens, {prompt_tokens / prefill_seconds:.1f} tokens/s; "
        f"decode: {decoded} tokens, {decoded / decode_seconds:.1f} tokens/s ({model.device.type})",
        file=sys.stderr,
    )


def default_model() -> pathlib.Path:
    """SmolLM2-135M-Instruct, which the build has fetched."""
    # `bazel run` starts in this repository's runfiles; those of the model's repository lie beside them.
    path = pathlib.Path("../smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").absolute()
    if path.is_file():
        return path
    raise GgufError("--model is not given, and the default model is there only under `bazel run`")


def serves_gpu() -> bool:
    """Whether this build has kernels for the GPU."""
    try:
        sgl_kernel.rmsnorm(torch.ones(1, 8, device="cuda"), torch.ones(8, device="cuda"))
    except NotImplementedError:
        return False
    return True


def pick_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise GgufError("--device=cuda, but torch sees no GPU")
    if name != "cpu" and torch.cuda.is_available():
        if serves_gpu():
            return torch.device("cuda")
        if name == "cuda":
            raise GgufError("--device=cuda, but this build has no kernels for the GPU: build with --config=all_sms")
    return torch.device("cpu")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} belongs to no flag; a prompt is given as --prompt=…")
    try:
        device = pick_device(_DEVICE.value)
        path = pathlib.Path(_MODEL.value) if _MODEL.value else default_model()
        # `bazel run` starts elsewhere; the user's paths are relative to where they typed.
        path = pathlib.Path(os.environ.get("BUILD_WORKING_DIRECTORY", "")) / path
        print(f"loading {path.name} on {device.type}", file=sys.stderr)
        file = GgufFile(path)
        codec = TextCodec(file)
        prompts = [codec.encode(codec.chat(prompt) if _CHAT.value else prompt) for prompt in _PROMPT.value]
        if not all(prompts):
            raise GgufError("a prompt has no tokens")
        if device.type == "cpu" and file.is_quantized:
            torch.set_num_threads(1)  # the others would wait, spinning, on the processors that sgl_kernel's need
        with torch.inference_mode():
            model = Model(file, device)
            sampler = Sampler(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _SEED.value, device)
            generate(model, codec, prompts, sampler, _MAX_TOKENS.value, sys.stdout)
    except GgufError as error:
        sys.exit(f"generate: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell says it of a command that SIGINT ended


if __name__ == "__main__":
    app.run(main)
