"""The whole model against torch: logits within the bound of 8-bit activations, greedy text up to the first near-tie."""

import io
import os
import pathlib

import pytest
import torch

from tests.generate import tiny_model
from tests.generate.reference import Reference
from tools.generate import generate
from tools.generate.gguf_file import GgufError, GgufFile
from tools.generate.model import Model
from tools.generate.text import TextCodec

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]

# bfloat16 rounds each activation to 8 bits of mantissa: the same order as int8 does, so the bound doubles on a GPU.
BOUND_FACTOR = {"cpu": 1.0, "cuda": 2.0}


def smollm2() -> pathlib.Path:
    """The default model: beside the test under Bazel, or where SGL_KERNEL_TEST_MODEL says."""
    given = os.environ.get("SGL_KERNEL_TEST_MODEL")
    path = pathlib.Path(given) if given else pathlib.Path("../smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    if not path.is_file():
        pytest.skip("SmolLM2 is not here: run under Bazel, or set SGL_KERNEL_TEST_MODEL")
    return path


def logits_of(model: Model, tokens: list[int]) -> torch.Tensor:
    """[vocab], by one prefill."""
    with torch.inference_mode():
        cache = model.new_cache(1, len(tokens))
        return generate.prefill(model, cache, [tokens])[0].cpu()


def generate_ids(model: Model, prompts: list[list[int]], count: int) -> list[list[int]]:
    with torch.inference_mode():
        sampler = generate.Sampler(0.0, 0, 1.0, 0, model.device)
        cache = model.new_cache(len(prompts), max(map(len, prompts)) + count)
        first = sampler(generate.prefill(model, cache, prompts))
        decoder = generate.Decoder(model, cache, sampler, first.clone(), [len(prompt) for prompt in prompts])
        return [list(ids) for ids in zip(*generate.tokens_of(decoder, first, count), strict=True)]


def check_greedy(reference: Reference, bound: float, prompt: list[int], ids: list[int]) -> int:
    """Each token is the reference's best behind the same text, or, where its two best logits lie within twice the bound
    (each may be off by it), one as good within that. Returns how many were decided by more than that."""
    logits, _ = reference.logits(prompt + ids)
    decided = 0
    for step, token in enumerate(ids):
        row = logits[len(prompt) + step - 1]
        best, second = row.topk(2).values
        assert row[token] >= best - 2 * bound, f"step {step} of {ids}"
        if best - second > 2 * bound:
            assert row[token] == best, f"step {step} of {ids}"
            decided += 1
    return decided


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("llama", "Q8_0"), ("qwen3", "Q4_0"), ("qwen3moe", "Q5_1"), ("qwen3", "F16"), ("llama", "Q4_1")],
)
def test_tiny_model_agrees_with_torch(tmp_path, architecture, kind, device):
    path = tiny_model.write(tmp_path / "m.gguf", architecture, tiny_model.Q[kind], seed=7)
    model, reference = Model(GgufFile(path), torch.device(device)), Reference(path)
    prompt = list(b"the quick brown fox jumps over it")
    logits, noise = reference.logits(prompt)
    bound = BOUND_FACTOR[device] * noise.logit_bound(logits)
    error = (logits_of(model, prompt) - logits[-1]).abs().max().item()
    assert error <= bound
    assert bound < 0.5 * logits[-1].std()  # else the check above would say nothing
    ids = generate_ids(model, [prompt], 8)[0]
    check_greedy(reference, bound, prompt, ids)


@pytest.mark.parametrize("device", DEVICES)
def test_smollm2_agrees_with_torch(device):
    path = smollm2()
    file = GgufFile(path)
    model, reference, codec = Model(file, torch.device(device)), Reference(path), TextCodec(file)
    prompt = codec.encode(codec.chat("Name the capital of France."))
    logits, noise = reference.logits(prompt)
    bound = BOUND_FACTOR[device] * noise.logit_bound(logits)
    assert (logits_of(model, prompt) - logits[-1]).abs().max().item() <= bound
    ids = generate_ids(model, [prompt], 24)[0]
    assert check_greedy(reference, bound, prompt, ids) >= 1
    assert "Paris" in "".join(codec.stream().push(token) for token in ids)


@pytest.mark.parametrize("device", DEVICES)
def test_batch_gives_each_prompt_its_own_text(tmp_path, device):
    path = tiny_model.write(tmp_path / "m.gguf", "qwen3", seed=3)
    model = Model(GgufFile(path), torch.device(device))
    prompts = [list(b"a"), list(b"some longer prompt, of more than one page" * 2), list(b"third")]
    together = generate_ids(model, prompts, 6)
    assert together == [generate_ids(model, [prompt], 6)[0] for prompt in prompts]


def test_chunked_prefill_is_the_whole(tmp_path, monkeypatch):
    path = tiny_model.write(tmp_path / "m.gguf", "llama")
    model = Model(GgufFile(path), torch.device("cpu"))
    prompt = list(b"0123456789" * 9)
    whole = logits_of(model, prompt)
    monkeypatch.setattr(generate, "PREFILL_CHUNK", 32)
    torch.testing.assert_close(logits_of(model, prompt), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_sampling_follows_the_seed(tmp_path, device):
    path = tiny_model.write(tmp_path / "m.gguf", "llama")
    file = GgufFile(path)
    model, codec = Model(file, torch.device(device)), TextCodec(file)

    def text(seed: int) -> str:
        out = io.StringIO()
        with torch.inference_mode():
            sampler = generate.Sampler(1.0, 20, 0.9, seed, model.device)
            generate.generate(model, codec, [list(b"once upon")], sampler, 16, out)
        return out.getvalue()

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(5)}) > 1


def test_context_is_bounded(tmp_path):
    path = tiny_model.write(tmp_path / "m.gguf", "llama")
    file = GgufFile(path)
    with pytest.raises(GgufError, match="context of 256 tokens"):
        generate.generate(Model(file, torch.device("cpu")), TextCodec(file), [[1] * 250], None, 7, io.StringIO())


def test_unsupported_architecture(tmp_path):
    path = tiny_model.write(tmp_path / "m.gguf", "gemma")
    with pytest.raises(GgufError, match="'gemma', expected llama, qwen3 or qwen3moe"):
        Model(GgufFile(path), torch.device("cpu"))


def test_text_round_trip(tmp_path):
    codec = TextCodec(GgufFile(tiny_model.write(tmp_path / "m.gguf", "llama")))
    text = "naïve café, 東京\n\t42 <|end|>"
    stream, pieces = codec.stream(), []
    for token in codec.encode(text):
        pieces.append(stream.push(token))
    assert "".join(pieces) + stream.finish() == text.replace("<|end|>", "")
    assert codec.encode("<|end|>") == [tiny_model.END]
    assert codec.chat("hi") == "<|user|>hi<|end|>"


def test_broken_characters_are_replaced(tmp_path):
    codec = TextCodec(GgufFile(tiny_model.write(tmp_path / "m.gguf", "llama")))
    stream = codec.stream()
    first_byte_of_e_acute = codec.encode("é")[0]
    assert stream.push(first_byte_of_e_acute) == ""
    assert stream.finish() == "\ufffd"
