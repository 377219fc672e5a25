"""Damaged GGUF files are refused with a message, whatever the damage."""

import random
import struct

import gguf
import pytest

from tests.generate import tiny_model
from tools.generate.gguf_file import GgufError, GgufFile


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("gguf") / "sound.gguf", "llama").read_bytes()


def open_bytes(path, data: bytes) -> GgufFile:
    path.write_bytes(data)
    return GgufFile(path)


def test_sound_file_opens(tmp_path, sound):
    file = open_bytes(tmp_path / "m.gguf", sound)
    assert file.get("general.architecture", str) == "llama"
    assert file.weight("token_embd.weight").columns == tiny_model.HIDDEN


def test_missing_file(tmp_path):
    with pytest.raises(GgufError, match="no such file"):
        GgufFile(tmp_path / "absent.gguf")


def test_every_truncation_is_refused(tmp_path, sound):
    lengths = {*range(0, 400), *random.Random(0).sample(range(400, len(sound) - 64), 150)}
    for length in sorted(lengths):
        with pytest.raises(GgufError):
            open_bytes(tmp_path / "m.gguf", sound[:length])


def test_random_damage_is_refused_or_harmless(tmp_path, sound):
    """No damage to the header leads to anything but a GgufError, or to a file whose tensors can still be read."""
    generator = random.Random(1)
    header = sound.index(b"output_norm.weight") + 4000
    refused = 0
    for _ in range(400):
        data = bytearray(sound)
        for _ in range(generator.randint(1, 4)):
            at = generator.randrange(4, header)
            data[at] = generator.choice([0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)])
        try:
            file = open_bytes(tmp_path / "m.gguf", bytes(data))
            for name in ("token_embd.weight", "blk.0.ffn_down.weight"):
                if name in file:
                    assert file.weight(name).dequantize().numel() > 0
        except GgufError:
            refused += 1
    assert refused > 50


def header(tensors, values=0) -> bytes:
    """A header whose tensors are (name, shape, type, offset)."""
    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), values)
    for name, shape, kind, offset in tensors:
        data += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(shape))
        data += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)
    return data + bytes(-len(data) % 32)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGML" + bytes(60), "expected b'GGUF'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0) + bytes(100), "tensor"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + bytes(100), "metadata"),
        (header([(b"a", (32,), 0, 0), (b"b", (32,), 0, 64)]) + bytes(4096), "overlap"),
        (header([(b"a", (32,), 0, 0), (b"a", (32,), 0, 128)]) + bytes(4096), "occurs twice"),
        (header([(b"a", (32,), 0, 2**40)]) + bytes(4096), "the file ends at"),
        (header([(b"a", (2**40, 2**40), 0, 0)]) + bytes(4096), "has shape"),
        (header([(b"a", (32, 0), 0, 0)]) + bytes(4096), "has shape"),
        (header([(b"a", (33,), 2, 0)]) + bytes(4096), "multiple of 32"),
        (header([(b"a", (32,), 99, 0)]) + bytes(4096), "type 99"),
        (header([(b"a", (32,), 0, 7)]) + bytes(4096), "multiple of 32"),
        (header([(b"a", (1, 1, 1, 1, 1), 0, 0)]) + bytes(4096), "5 dimensions"),
    ],
)
def test_absurd_header(tmp_path, data, message):
    with pytest.raises(GgufError, match=message):
        open_bytes(tmp_path / "m.gguf", data)


def test_type_without_kernel(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    import numpy as np

    writer.add_tensor("a", np.zeros((1, 54), np.uint8), raw_dtype=gguf.GGMLQuantizationType.TQ1_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match="TQ1_0, which no kernel takes"):
        GgufFile(tmp_path / "m.gguf").weight("a")


def test_wrong_shape_and_missing_tensor(tmp_path, sound):
    file = open_bytes(tmp_path / "m.gguf", sound)
    with pytest.raises(GgufError, match=r"has shape \[259, 64\], expected \[1, 2\]"):
        file.weight("token_embd.weight", 1, 2)
    with pytest.raises(GgufError, match="is missing"):
        file.weight("absent")
