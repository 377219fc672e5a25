"""Arguments in memory that notices: guard bytes around every buffer, poison in every output.

`Arguments` are a call's arguments by name (`args.input` and `args["input"]` are the same), moved so that each storage
lies between two guards. What lies outside of an input is NaN (or -1), so that a value read from there shows in the
result; a byte that changes outside of what the schema says is written is an error.
"""

import torch

GUARD = 1024  # bytes; a multiple of every alignment that a kernel may look for
POISON = 0xFF  # NaN in every float format, -1 in every signed integer


class Arguments(dict):
    __getattr__ = dict.__getitem__

    def tensors(self, names=None):
        """(name, tensor) for each tensor, those in lists included."""
        for name in self if names is None else names:
            value = self[name]
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, torch.Tensor):
                    yield name, tensor

    def map_tensors(self, function) -> "Arguments":
        def convert(value):
            if isinstance(value, torch.Tensor):
                return function(value)
            if isinstance(value, (list, tuple)) and any(isinstance(item, torch.Tensor) for item in value):
                return [convert(item) for item in value]
            return value

        return Arguments({name: convert(value) for name, value in self.items()})


def relocate(args: Arguments) -> Arguments:
    """The same arguments, with the same strides and aliases, each storage in guarded memory of its own."""
    moved = {}

    def move(tensor):
        storage = tensor.untyped_storage()
        key = storage.data_ptr() if storage.nbytes() else id(storage)
        if key not in moved:
            raw = torch.full((storage.nbytes() + 2 * GUARD,), POISON, dtype=torch.uint8, device=tensor.device)
            if storage.nbytes():
                raw[GUARD : GUARD + storage.nbytes()] = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(
                    storage
                )
            moved[key] = raw
        offset = GUARD // tensor.element_size() + tensor.storage_offset()
        return view_as(moved[key], tensor, offset)

    return args.map_tensors(move)


def view_as(raw: torch.Tensor, like: torch.Tensor, offset: int) -> torch.Tensor:
    """A view of `like`'s dtype, shape and strides into the bytes of `raw`, `offset` elements from its start."""
    whole = torch.empty(0, dtype=like.dtype, device=raw.device).set_(raw.untyped_storage())
    return whole.as_strided(like.shape, like.stride(), offset)


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of the tensor's storage, guards included."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def poison(args: Arguments, names: list[str]) -> None:
    """Fills the named outputs, but one that shares its storage with another argument (an operation in place)."""
    for name, tensor in args.tensors(names):
        shared = [other for other, t in args.tensors() if other != name and same_storage(t, tensor)]
        if tensor.numel() and not shared:
            # An as_strided view of bytes reaches every element whatever the strides.
            size = tensor.element_size()
            raw = bytes_of(tensor)
            strides = [stride * size for stride in tensor.stride()]
            view = raw.as_strided((*tensor.shape, size), (*strides, 1), tensor.storage_offset() * size)
            view.fill_(POISON)


def same_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() != 0


class Snapshot:
    """The bytes of all arguments at a moment."""

    def __init__(self, args: Arguments):
        self.args = args
        self.before = {}
        for _, tensor in args.tensors():
            key = tensor.untyped_storage().data_ptr()
            if key not in self.before:
                self.before[key] = (bytes_of(tensor), bytes_of(tensor).clone())

    def restore(self) -> None:
        for now, before in self.before.values():
            now.copy_(before)

    def assert_unchanged(self, but: list[str] = ()) -> None:
        """Nothing has changed but the named arguments."""
        written = list(self.args.tensors(but))
        for now, before in self.before.values():
            after, expected = now.clone(), before.clone()
            for _, tensor in written:
                if tensor.numel() and same_storage(tensor, now):
                    for copy in (after, expected):
                        view_as(copy, tensor, tensor.storage_offset()).zero_()
            if not torch.equal(after, expected):
                at = int((after != expected).nonzero()[0]) - GUARD
                names = sorted({name for name, tensor in self.args.tensors() if same_storage(tensor, now)})
                raise AssertionError(
                    f"byte {at} of the {now.numel() - 2 * GUARD} of {', '.join(names)} changed, which the operator "
                    f"may not write (negative: before it; beyond: behind it)"
                )
