"""Reads GGUF files, and refuses those that are not sound before anything relies on them.

`gguf.GGUFReader` trusts a file's counts and offsets: a damaged one makes it allocate without bound, read outside of the
file or fail with whatever exception comes first. So check_layout() walks the header first, within the file's bounds.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import pathlib
import struct
import typing

import gguf
import numpy as np
import torch

from sgl_kernel.quantization.gguf import ggml_dequantize

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4  # ggml's limit
MAX_NAME_BYTES = 64 * 1024
MAX_ARRAY = 2**22  # elements: GGUFReader makes some objects of each. The largest vocabularies have 2^18 tokens.
DEFAULT_ALIGNMENT = 32
MIN_ALIGNMENT = 8  # the format's; as many bytes as the widest load of a block's scale needs

# GGUF value type → bytes; strings and arrays are read by hand.
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
ALIGNMENT_KEY = b"general.alignment"
UINT32 = 4

# The dense types that a matrix may have beside the block formats of ggml_dequantize.
DENSE_TYPES = {
    gguf.GGMLQuantizationType.F32: torch.float32,
    gguf.GGMLQuantizationType.F16: torch.float16,
    gguf.GGMLQuantizationType.BF16: torch.bfloat16,
}
BLOCK_TYPES = frozenset(
    gguf.GGMLQuantizationType(number)
    for number in (2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 29)
)


class GgufError(Exception):
    """A file that cannot be used; the text says which and why."""


class _Cursor:
    """A position in the header. Every read is checked against the end of the file."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.position = 0

    def skip(self, count: int, what: str) -> int:
        """The position before `count` bytes, which are passed over."""
        begin = self.position
        if count < 0 or count > len(self.data) - begin:
            raise GgufError(f"{what} at byte {begin} takes {count} bytes, but the file ends at {len(self.data)}")
        self.position += count
        return begin

    def number(self, form: str, what: str) -> int:
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form), what))[0]

    def text(self, what: str, limit: int | None = None) -> bytes:
        length = self.number("<Q", f"the length of {what}")
        if limit is not None and length > limit:
            raise GgufError(f"{what} is {length} bytes long, expected at most {limit}")
        begin = self.skip(length, what)
        return self.data[begin : begin + length]

    def value(self, kind: int, what: str) -> int | None:
        """Passes over a value; returns it if it is a u32."""
        if kind == STRING:
            self.skip(self.number("<Q", f"the length of {what}"), what)
        elif kind == ARRAY:
            element = self.number("<I", f"the element type of {what}")
            count = self.number("<Q", f"the length of {what}")
            if count > MAX_ARRAY:
                raise GgufError(f"{what} has {count} elements, expected at most {MAX_ARRAY}")
            if element in SCALAR_BYTES:
                self.skip(count * SCALAR_BYTES[element], what)
            elif element == STRING:
                for _ in range(count):
                    self.skip(self.number("<Q", f"the length of an element of {what}"), what)
            else:
                raise GgufError(f"{what} is an array of elements of type {element}, expected scalars or strings")
        elif kind == UINT32:
            return self.number("<I", what)
        elif kind in SCALAR_BYTES:
            self.skip(SCALAR_BYTES[kind], what)
        else:
            raise GgufError(f"{what} has value type {kind}, which does not exist")
        return None


def check_layout(path: pathlib.Path) -> None:
    """Raises GgufError unless header and tensor table are sound and all tensors lie apart within the file."""
    size = path.stat().st_size
    if size < 24:  # magic, version and two counts
        raise GgufError(f"it is {size} bytes long, too short for a GGUF header")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        magic = data[cursor.skip(4, "the magic") : 4]
        if magic != MAGIC:
            raise GgufError(f"it starts with {magic!r}, expected {MAGIC!r}")
        version = cursor.number("<I", "the version")
        if version not in VERSIONS:
            raise GgufError(f"it is of GGUF version {version}, expected one of {VERSIONS}")
        tensor_count = cursor.number("<Q", "the number of tensors")
        value_count = cursor.number("<Q", "the number of metadata values")
        alignment = DEFAULT_ALIGNMENT
        seen: set[bytes] = set()
        for _ in range(value_count):
            key = cursor.text("a metadata key", MAX_NAME_BYTES)
            if key in seen:
                raise GgufError(f"metadata key {key!r} occurs twice")
            seen.add(key)
            value = cursor.value(cursor.number("<I", f"the type of {key!r}"), f"metadata value {key!r}")
            if key == ALIGNMENT_KEY:
                if value is None or value < MIN_ALIGNMENT or value & (value - 1):
                    raise GgufError(f"general.alignment is {value}, expected a power of 2 from {MIN_ALIGNMENT} on")
                alignment = value
        _check_tensors(cursor, tensor_count, alignment)


def _check_tensors(cursor: _Cursor, tensor_count: int, alignment: int) -> None:
    spans = []
    seen: set[bytes] = set()
    for _ in range(tensor_count):
        name = cursor.text("a tensor name", MAX_NAME_BYTES)
        if name in seen:
            raise GgufError(f"tensor {name!r} occurs twice")
        seen.add(name)
        rank = cursor.number("<I", f"the rank of {name!r}")
        if not 1 <= rank <= MAX_DIMS:
            raise GgufError(f"tensor {name!r} has {rank} dimensions, expected 1 to {MAX_DIMS}")
        shape = [cursor.number("<Q", f"the shape of {name!r}") for _ in range(rank)]
        number = cursor.number("<I", f"the type of {name!r}")
        offset = cursor.number("<Q", f"the offset of {name!r}")
        try:
            block_size, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
        except (ValueError, KeyError):
            raise GgufError(f"tensor {name!r} has quantization type {number}, which does not exist") from None
        elements = 1
        for extent in shape:
            elements *= extent
        if elements == 0 or elements > 2**56:
            raise GgufError(f"tensor {name!r} has shape {shape}")
        if shape[0] % block_size != 0:
            raise GgufError(f"tensor {name!r} has rows of {shape[0]} elements, expected a multiple of {block_size}")
        if offset % alignment != 0:
            raise GgufError(f"tensor {name!r} has offset {offset}, expected a multiple of {alignment}")
        spans.append((offset, offset + elements // block_size * block_bytes, name))
    start = (cursor.position + alignment - 1) // alignment * alignment
    previous_end, previous_name = 0, b""
    for begin, end, name in sorted(spans):
        if begin < previous_end:
            raise GgufError(f"tensors {previous_name!r} and {name!r} overlap")
        if start + end > len(cursor.data):
            raise GgufError(f"tensor {name!r} ends at byte {start + end}, but the file ends at {len(cursor.data)}")
        previous_end, previous_name = end, name


@dataclasses.dataclass(frozen=True)
class Weight:
    """A tensor of the file: `rows` rows of `columns` elements, or `experts` times that."""

    data: (
        torch.Tensor
    )  # uint8 [(experts,) rows, bytes] in a block format, else a float tensor [(experts,) rows, columns]
    kind: gguf.GGMLQuantizationType

    @property
    def is_block_format(self) -> bool:
        return self.kind in BLOCK_TYPES

    @property
    def columns(self) -> int:
        if not self.is_block_format:
            return self.data.shape[-1]
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        return self.data.shape[-1] // block_bytes * block_size

    def to(self, device: torch.device) -> Weight:
        return Weight(self.data.to(device), self.kind)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if not self.is_block_format:
            return self.data.to(dtype)
        rows = self.data.reshape(-1, self.data.shape[-1])
        values = ggml_dequantize(rows, int(self.kind), rows.shape[0], self.columns, dtype)
        return values.reshape(*self.data.shape[:-1], self.columns)


_NAMES = {int: "an integer", float: "a finite number", bool: "a bool", str: "a text"}


def _is_a(value, kind: type) -> bool:
    if element := typing.get_args(kind):
        return isinstance(value, list) and all(_is_a(item, *element) for item in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind  # a bool is no int here


class GgufFile:
    """The metadata and tensors of a file that has passed check_layout()."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        try:
            if not self.path.is_file():
                raise GgufError("there is no such file")
            check_layout(self.path)
            # Copy-on-write: torch takes the arrays as they lie in the file, and wants them writable.
            self._reader = gguf.GGUFReader(self.path, "c")
        except GgufError as error:
            raise GgufError(f"{self.path}: {error}") from None
        except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise GgufError(f"{self.path}: cannot be read: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._unread = set(self._tensors)

    def get(self, key: str, kind: type, default=None):
        """A metadata value: an int, a finite float, a bool, a str, or a list of one of these, as list[int]. Without a
        default it must be there."""
        field = self._reader.fields.get(key)
        if field is None and default is None:
            raise GgufError(f"{self.path}: metadata value {key!r} is missing")
        if field is None:
            return default
        try:
            value = field.contents()
        except (ValueError, IndexError, TypeError) as error:
            raise GgufError(f"{self.path}: metadata value {key!r} cannot be read: {error}") from error
        if not _is_a(value, kind):
            text = repr(value)
            text = text if len(text) <= 100 else f"{text[:100]}…"
            raise GgufError(f"{self.path}: metadata value {key!r} is {text}, expected {_NAMES.get(kind, kind)}")
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    @property
    def is_quantized(self) -> bool:
        """Whether every matrix is in a block format, so that torch multiplies none."""
        return all(len(tensor.shape) < 2 or tensor.tensor_type in BLOCK_TYPES for tensor in self._tensors.values())

    @property
    def unread(self) -> list[str]:
        """The names of the tensors that weight() was not asked for."""
        return sorted(self._unread)

    def weight(self, name: str, *shape: int) -> Weight:
        """The tensor of this name, which must have this shape (outermost first, as torch has it)."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise GgufError(f"{self.path}: tensor {name!r} is missing")
        self._unread.discard(name)
        actual = tuple(int(extent) for extent in reversed(tensor.shape))
        if shape and actual != shape:
            raise GgufError(f"{self.path}: tensor {name!r} has shape {list(actual)}, expected {list(shape)}")
        kind = tensor.tensor_type
        if kind in DENSE_TYPES:
            raw = torch.from_numpy(np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1))
            return Weight(raw.view(DENSE_TYPES[kind]).reshape(actual), kind)
        if kind in BLOCK_TYPES:
            return Weight(torch.from_numpy(np.asarray(tensor.data).reshape(*actual[:-1], -1)), kind)
        raise GgufError(f"{self.path}: tensor {name!r} has quantization type {kind.name}, which no kernel takes")
