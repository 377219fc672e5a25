"""An operator under test: its cases, how its arguments are made, and what it should compute.

    class Norm(Operator):
        cases = [case(dtype=torch.bfloat16, rows=3, hidden=4096), …]   # the first is the typical one
        empty = [case(dtype=torch.bfloat16, rows=0, hidden=4096)]
        batch = {"output": 0, "input": 0}
        strided = ("output", "input")
        bad = [bad_value("eps", -1.0), bad_shape("weight", (7,))]

        def make(self, case, draw):
            return {"output": draw.empty((case.rows, case.hidden), case.dtype), …}   # by the schema's names

        def reference(self, case, args):                               # on the CPU, floats as float64
            return {"output": …}

    test_norm = operator_tests(Norm(name="rmsnorm"), Norm(name="gemma_rmsnorm", …))

Everything else is in checks.py. A class attribute may be given to the constructor instead.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from tests.harness.compare import assert_close
from tests.harness.memory import Arguments, bytes_of, view_as
from tests.harness.schema import Schema, built_schemas


class Case(SimpleNamespace):
    """A row of a case table. `large=True` marks one of more than 2^31 elements: it runs on a GPU with room for it."""

    def __str__(self):
        fields = {name: value for name, value in vars(self).items() if name != "large"}
        text = "-".join(f"{name}={_short(value)}" for name, value in fields.items())
        return re.sub(r"[^\w=.,()+-]", "", text)


def case(**fields) -> Case:
    return Case(**{"large": False, **fields})


def _short(value):
    return str(value).removeprefix("torch.")


class Draw:
    """Random tensors on a device: the same numbers on every device."""

    def __init__(self, device: str, seed: int):
        self.device = torch.device(device)
        self.seed = seed
        self._cpu = torch.Generator().manual_seed(seed)

    def normal(self, shape, dtype=torch.float32, mean=0.0, std=1.0):
        return self._place(torch.randn(shape, generator=self._cpu) * std + mean, dtype)

    def uniform(self, shape, dtype=torch.float32, low=0.0, high=1.0):
        return self._place(torch.rand(shape, generator=self._cpu) * (high - low) + low, dtype)

    def integers(self, low, high, shape, dtype=torch.int32):
        """From low to high - 1."""
        return self._place(torch.randint(low, high, shape, generator=self._cpu), dtype)

    def permutation(self, count, dtype=torch.int32):
        return self._place(torch.randperm(count, generator=self._cpu), dtype)

    def tensor(self, values, dtype):
        """A given tensor, or nested lists, of no randomness."""
        return self._place(torch.as_tensor(values), dtype)

    def empty(self, shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device=self.device)

    def generator(self):
        """A torch.Generator of the device, for an operator that takes one."""
        return torch.Generator(device=self.device).manual_seed(self.seed)

    def _place(self, tensor, dtype):
        return tensor.to(dtype).to(self.device)


@dataclass
class Bad:
    """A wrong call: `mutate(args)` changes one argument of a right one; the message names operator and `argument`."""

    argument: str
    label: str
    mutate: Callable[[Arguments], object]
    exception: type | tuple[type, ...] = ValueError
    names: str = ""  # a regular expression of what the message may name instead of the argument
    by_value: bool = False  # a wrong value in a tensor: looked at if checks_values()


def bad_value(argument, value, label="", **kwargs) -> Bad:
    label = label or f"{argument}={list(value.shape) if isinstance(value, torch.Tensor) else value}"
    return Bad(argument, label, lambda args: args.update({argument: value}), **kwargs)


def bad_shape(argument, shape, **kwargs) -> Bad:
    """The argument with another shape, its dtype and device kept."""
    return Bad(
        argument, f"{argument}{list(shape)}", lambda a: a.update({argument: a[argument].new_zeros(shape)}), **kwargs
    )


def bad_index(argument, index, **kwargs) -> Bad:
    """The argument with another first element."""

    def mutate(args):
        args[argument] = args[argument].clone()
        args[argument].view(-1)[0] = index

    return Bad(argument, f"{argument}[0]={index}", mutate, by_value=True, **kwargs)


def checks_values(device) -> bool:
    """Whether the operators look at what index tensors on that device hold."""
    return device == "cpu" or os.environ.get("SGL_KERNEL_CHECK") == "1"


def bad_dtype(argument, dtype, **kwargs) -> Bad:
    return Bad(argument, f"{argument}.{_short(dtype)}", lambda a: a.update({argument: a[argument].to(dtype)}), **kwargs)


def bad_alias(argument, of, **kwargs) -> Bad:
    """The argument, its dtype, shape and strides kept, in the memory of another one that is at least as large."""

    def mutate(args):
        tensor, other = args[argument], args[of]
        offset = other.storage_offset() * other.element_size() // tensor.element_size()
        args[argument] = view_as(bytes_of(other), tensor, offset)

    return Bad(argument, f"{argument} in {of}", mutate, **kwargs)


OPERATORS: list["Operator"] = []  # of all test files that are imported


class Operator:
    """See the head of this file. `checks.py` says what each attribute is for."""

    name: str
    cases: list[Case]
    empty: list[Case] = ()  # zero-size calls: no-ops, and no launch on a GPU

    # Written arguments whose former contents matter (in place, or written in part): they are not poisoned.
    inout: tuple[str, ...] = ()

    # Argument (or result) → the dimension along which its rows are computed independently: row i alone has the bits of
    # row i in the batch. Empty where rows are not independent.
    batch: dict[str, int] = {}

    # Likewise, where the bits of a row may depend on how many rows there are, but not on what the others hold.
    rows: dict[str, int] = {}

    # Arguments that may have strided rows, and that may start at any element: they have to be right. Others may as well
    # be refused, with a ValueError that names them.
    strided: tuple[str, ...] = ()
    misaligned: tuple[str, ...] = ()

    # Wrong calls of the typical case. The harness adds for each of its tensors a wrong dtype, a wrong rank and, on a
    # GPU, a wrong device, and gives a wrong tensor where an optional one is missing. Every other argument but a bool
    # needs a row here, or a reason in `any_value`, or either from another Operator of this name. `accepts` lists what
    # the harness would add but the operator takes: {"input.rank": "any rank serves", "metadata.given": "not read"}.
    bad: list[Bad] = []
    any_value: dict[str, str] = {}
    accepts: dict[str, str] = {}

    # Further ways to call it from Python: label → function(sgl_kernel, args) that returns what is new by name, as
    # {"functional": lambda sgl_kernel, a: {"output": sgl_kernel.rmsnorm(a.input, a.weight, a.eps)}}.
    forms: dict[str, Callable] = {}

    # Check → why the operator goes without it.
    without: dict[str, str] = {}

    # See compare.py.
    dtype_roundings = 1
    f32_roundings = 32

    def __init__(self, **attributes):
        for name, value in attributes.items():
            setattr(self, name, value)

    def make(self, case: Case, draw: Draw) -> dict:
        raise NotImplementedError

    def reference(self, case: Case, args: Arguments) -> dict:
        """What each written argument, and each result ("result", or "result0", "result1", …), should hold: a tensor, or
        an Expected. `args` are those of before the call, on the CPU, floating-point tensors as float64."""
        raise NotImplementedError

    def compare(self, case: Case, args: Arguments, outputs: dict) -> None:
        """Compares outputs with the reference. Replaced by operators whose result has no single right value."""
        expected = self.reference(case, args)
        missing = set(outputs) ^ set(expected)
        assert not missing, f"reference and outputs differ in {sorted(missing)}"
        for name, tensor in outputs.items():
            assert_close(name, tensor, expected[name], self.dtype_roundings, self.f32_roundings)

    def python(self, sgl_kernel, args: Arguments):
        """Calls the Python function in the destination form: the schema's arguments in their order."""
        return getattr(sgl_kernel, self.name)(*args.values())

    @property
    def schema(self) -> Schema:
        return built_schemas()[self.name]

    def __repr__(self):
        return self.name
