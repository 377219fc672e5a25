"""Metadata that are sound as a file, but not as a model: refused with a message, whatever they hold."""

import io
import math

import gguf
import numpy as np
import pytest
import torch

from tests.generate import tiny_model
from tools.generate import generate
from tools.generate.gguf_file import MAX_ARRAY, GgufError, GgufFile
from tools.generate.model import Config, Model
from tools.generate.text import TextCodec

V = gguf.GGUFValueType

# Of every type and out of every range, for whichever key.
ODD_VALUES = [
    ("", V.STRING),
    ("abc", V.STRING),
    (0, V.UINT32),
    (3, V.UINT32),
    (-1, V.INT32),
    (2**32 - 1, V.UINT32),
    (2**63, V.UINT64),
    (True, V.BOOL),
    (-1.5, V.FLOAT32),
    (math.nan, V.FLOAT32),
    (math.inf, V.FLOAT64),
    ([1, 2], V.ARRAY, V.UINT32),
    (["a", "b"], V.ARRAY, V.STRING),
]


def rewrite(source, path, key, value=None, kind=None, element=None, tensors=()):
    """Copies a file with one metadata value replaced, added or (without a kind) left out, and with further tensors."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data = [{}]
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != key:
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=field.types[-1])
    if kind is not None:
        writer.add_key_value(key, value, kind, sub_type=element)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, data in tensors:
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def run(path) -> str:
    """All that the main job does with a file."""
    file, out = GgufFile(path), io.StringIO()
    codec = TextCodec(file)
    prompts = [codec.encode("the"), codec.encode(codec.chat("quick brown"))]
    with torch.inference_mode():
        model = Model(file, torch.device("cpu"))
        generate.generate(model, codec, prompts, generate.Sampler(1.0, 9, 0.9, 0, model.device), 2, out)
    return out.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return {name: tiny_model.write(folder / f"{name}.gguf", name) for name in ("llama", "qwen3moe")}


@pytest.mark.parametrize("architecture", ["llama", "qwen3moe"])
def test_any_value_of_any_key_is_refused_or_harmless(files, tmp_path, architecture):
    source = files[architecture]
    keys = [key for key in gguf.GGUFReader(source).fields if not key.startswith("GGUF.")]
    keys += [f"{architecture}.rope.{key}" for key in ("scaling.type", "dimension_count")]
    keys += [f"tokenizer.ggml.{key}" for key in ("bos_token_id", "eot_token_id", "add_bos_token")]
    refused = 0
    for key in keys:
        for value in [(), *ODD_VALUES]:
            try:
                run(rewrite(source, tmp_path / "m.gguf", key, *value))
            except GgufError:
                refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("architecture", "key", "value", "message"),
    [
        ("llama", "general.alignment", (4, V.UINT32), "general.alignment is 4, expected a power of 2 from 8 on"),
        ("llama", "llama.block_count", ("2", V.STRING), "'llama.block_count' is '2', expected an integer"),
        ("llama", "llama.attention.head_count", (3, V.UINT32), "3 heads, expected a multiple of 2 KV heads"),
        ("llama", "llama.attention.head_count_kv", (0, V.UINT32), "head_count_kv is 0, expected at least 1"),
        ("llama", "llama.attention.key_length", (12, V.UINT32), "heads of 12, expected a multiple of 8 up to 256"),
        ("llama", "llama.attention.value_length", (64, V.UINT32), "value_length is 64, expected the heads' 32"),
        ("llama", "llama.rope.dimension_count", (16, V.UINT32), "dimension_count is 16, expected the heads' 32"),
        ("llama", "llama.rope.freq_base", (0.0, V.FLOAT32), "freq_base is 0.0, expected more than 0"),
        ("llama", "llama.attention.layer_norm_rms_epsilon", (math.nan, V.FLOAT32), "is nan, expected a finite number"),
        ("qwen3moe", "qwen3moe.expert_used_count", (5, V.UINT32), "5 experts are used, expected at most 4"),
        ("llama", "tokenizer.ggml.bos_token_id", (259, V.UINT32), "is 259, expected less than the 259 tokens"),
        ("llama", "tokenizer.ggml.merges", (["x yz"], V.ARRAY, V.STRING), "merges do not fit the tokens"),
        ("llama", "tokenizer.chat_template", ("{{ 1 + 'a' }}", V.STRING), "chat template cannot be rendered"),
        ("llama", "tokenizer.ggml.model", ("llama", V.STRING), "'tokenizer.ggml.scores' is missing"),
    ],
)
def test_message(files, tmp_path, architecture, key, value, message):
    with pytest.raises(GgufError, match=message):
        run(rewrite(files[architecture], tmp_path / "m.gguf", key, *value))


def test_absurd_array(files, tmp_path):
    values = np.zeros(MAX_ARRAY + 1, np.uint8).tobytes()
    path = rewrite(files["llama"], tmp_path / "m.gguf", "general.notes", values, V.ARRAY, V.UINT8)
    with pytest.raises(GgufError, match=f"has {MAX_ARRAY + 1} elements, expected at most {MAX_ARRAY}"):
        GgufFile(path)


def test_tensor_without_a_place(files, tmp_path):
    """A bias, say: without it the text would be another model's."""
    bias = ("blk.0.attn_q.bias", np.zeros(128, np.float32))
    path = rewrite(files["llama"], tmp_path / "m.gguf", "general.name", tensors=[bias])
    with pytest.raises(GgufError, match=r"'blk.0.attn_q.bias' has no place in a model of llama"):
        run(path)


def test_sound_files_run(files):
    for architecture, path in files.items():
        assert Config.read(GgufFile(path)).architecture == architecture
        assert run(path).count("\n") >= 2
