"""What is checked of every operator, on every device: each function below is one pytest test a row of its list.

`check(operator, device, case)` fails with an exception. The cases that it runs over are its `over`: all of them, or the
typical one (the first), because the check looks at the call and not at the numbers.
"""

import ctypes
import re
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch

from tests.harness.compare import assert_same_bits
from tests.harness.memory import POISON, Arguments, Snapshot, bytes_of, poison, relocate, same_storage
from tests.harness.operator import OPERATORS, Bad, Draw, bad_value, checks_values

CHECKS = []


def check(over):
    def register(function):
        CHECKS.append((function, over))
        return function

    return register


def all_cases(operator):
    return [row for row in operator.cases if not row.large]


def typical(operator):
    return all_cases(operator)[:1]


def arguments(operator, device, case, seed=0) -> Arguments:
    """Fresh arguments in guarded memory, pure outputs poisoned."""
    made = operator.make(case, Draw(device, seed))
    names = [argument.name for argument in operator.schema.arguments]
    assert set(made) == set(names), f"make() gives {sorted(made)}, the schema has {sorted(names)}"
    args = relocate(Arguments({name: made[name] for name in names}))
    poison(args, [name for name in operator.schema.written if name not in operator.inout])
    return args


def ways(operator) -> dict:
    """label → function(args) → what it returns beyond the written arguments."""
    import sgl_kernel

    def through_torch(args):
        return getattr(torch.ops.sgl_kernel, operator.name)(*args.values())

    found = {"torch.ops": through_torch, "python": lambda args: operator.python(sgl_kernel, args)}
    for label, form in operator.forms.items():
        found[label] = lambda args, form=form: form(sgl_kernel, args)
    return found


def call(operator, args, way) -> dict:
    """Runs the operator; returns the written arguments and the results by name."""
    written = [(name, tensor) for name, tensor in args.tensors(operator.schema.written)]
    outputs = dict(written) if len({n for n, _ in written}) == len(written) else numbered(written)
    returned = way(args)
    if isinstance(returned, dict):
        outputs.update(returned)
    elif operator.schema.returns == "()":
        pass  # the function may return an output that it was given
    elif isinstance(returned, torch.Tensor):
        outputs["result"] = returned
    elif isinstance(returned, (list, tuple)):
        outputs.update({f"result{i}": tensor for i, tensor in enumerate(returned)})
    else:
        outputs["result"] = torch.as_tensor(returned)
    return outputs


def numbered(pairs) -> dict:
    """{"layers0": …, "layers1": …} for an argument that is a list of tensors."""
    return {f"{name}{i}": tensor for i, (name, tensor) in enumerate(pairs)}


def for_reference(args: Arguments) -> Arguments:
    """Copies on the CPU, floats as float64."""
    return args.map_tensors(
        lambda t: t.detach().cpu().to(torch.float64 if t.dtype.is_floating_point else t.dtype, copy=True)
    )


def copies(outputs: dict) -> dict:
    return {name: tensor.detach().clone() for name, tensor in outputs.items()}


@check(all_cases)
def matches_reference(operator, device, case):
    """Right against the float64 reference, the same bits through every way to call it and when called twice; nothing is
    written but what the schema says, and of that every element."""
    first = {}
    for label, way in [*ways(operator).items(), ("again", ways(operator)["torch.ops"])]:
        args = arguments(operator, device, case)
        before = for_reference(args)
        snapshot = Snapshot(args)
        outputs = call(operator, args, way)
        with named(label):
            snapshot.assert_unchanged(but=operator.schema.written)
            if not first:
                operator.compare(case, before, outputs)
                first = copies(outputs)
            for name, tensor in outputs.items():
                assert_same_bits(name, tensor, first[name])


@contextmanager
def named(label):
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"[{label}] {error}") from None


@check(lambda operator: operator.empty)
def does_nothing_when_empty(operator, device, case):
    matches_reference(operator, device, case)
    if device == "cpu":
        return
    args = arguments(operator, device, case)
    outputs = call(operator, args, ways(operator)["torch.ops"])
    if all(tensor.numel() == 0 for tensor in outputs.values()):
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph):
            call(operator, args, ways(operator)["torch.ops"])
        nodes = ctypes.c_size_t()
        error = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(
            ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(nodes)
        )
        assert (error, nodes.value) == (0, 0), f"{nodes.value} launches for nothing (CUDA error {error})"


@check(lambda operator: [row for row in all_cases(operator) if operator.batch])
def row_does_not_depend_on_batch(operator, device, case):
    way = ways(operator)["torch.ops"]
    args = arguments(operator, device, case)
    rows = {args[name].shape[dim] for name, dim in operator.batch.items() if isinstance(args.get(name), torch.Tensor)}
    assert len(rows) == 1, f"the arguments in `batch` differ in their number of rows: {sorted(rows)}"
    rows = rows.pop()
    alone = arguments(operator, device, case)
    outputs = copies(call(operator, args, way))
    for row in sorted({0, rows // 2, rows - 1}):
        one = call(operator, narrow(operator, alone, row, 1), way)
        for name, tensor in one.items():
            if name in operator.batch:
                assert_same_bits(f"row {row} of {name}", tensor, outputs[name].narrow(operator.batch[name], row, 1))


def narrow(operator, args, row, count) -> Arguments:
    return Arguments(
        {
            name: value.narrow(operator.batch[name], row, count)
            if name in operator.batch and isinstance(value, torch.Tensor)
            else value
            for name, value in args.items()
        }
    )


@check(lambda operator: [row for row in all_cases(operator) if operator.rows])
def row_does_not_depend_on_other_rows(operator, device, case):
    """First, middle and last row (of up to three, the middle one) have the same bits when all others are NaN."""
    way = ways(operator)["torch.ops"]
    outputs = copies(call(operator, arguments(operator, device, case), way))
    args = arguments(operator, device, case)
    tensors = {name: t for name, t in args.items() if name in operator.rows and isinstance(t, torch.Tensor)}
    count = max(tensor.shape[operator.rows[name]] for name, tensor in tensors.items())
    if count == 1:
        return  # there are no others
    kept = sorted({0, count // 2, count - 1}) if count > 3 else [count // 2]
    for name, tensor in tensors.items():
        dim = operator.rows[name]
        if tensor.shape[dim] != count:
            continue  # one for all rows
        nan = torch.full((tensor.element_size(),), POISON, dtype=torch.uint8, device=tensor.device).view(tensor.dtype)
        for before, after in pairwise([-1, *kept, count]):
            others = tensor.narrow(dim, before + 1, after - before - 1)
            others.copy_(nan.expand_as(others))
    for name, tensor in call(operator, args, way).items():
        for row in kept if name in operator.rows else ():
            dim = operator.rows[name]
            assert_same_bits(f"row {row} of {name}", tensor.narrow(dim, row, 1), outputs[name].narrow(dim, row, 1))


def with_padded_rows(elements):
    def change(tensor):
        if tensor.dim() < 2:
            return None
        padded = tensor.new_zeros((*tensor.shape[:-1], tensor.shape[-1] + elements))
        return padded[..., : tensor.shape[-1]].copy_(tensor)

    return change


def with_gaps(tensor):
    if tensor.dim() < 1 or tensor.shape[-1] < 2:
        return None
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def one_element_later(tensor):
    if tensor.element_size() >= 16 or not tensor.is_contiguous():
        return None
    return tensor.new_zeros(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)


def transposed(tensor):
    """Columns where rows are dense, and the other way round."""
    if tensor.dim() < 2 or min(tensor.shape[-2:]) < 2:
        return None
    return tensor.mT.contiguous().mT if tensor.stride(-1) == 1 else tensor.contiguous()


# layout → (change, the attribute that lists the arguments which have to take it)
LAYOUTS = {
    "rows 16 elements apart": (with_padded_rows(16), "strided"),
    "rows one element apart": (with_padded_rows(1), "misaligned_rows"),
    "one element off": (one_element_later, "misaligned"),
    "gaps between elements": (with_gaps, None),
    "transposed": (transposed, None),
}


@check(typical)
def takes_or_refuses_layouts(operator, device, case):
    """Each tensor in each layout: right, or a ValueError that names it, and nothing written."""
    way = ways(operator)["torch.ops"]
    for argument in [argument for argument in operator.schema.arguments if argument.is_tensor]:
        for layout, (change, attribute) in LAYOUTS.items():
            made = Arguments(operator.make(case, Draw(device, 0)))
            made = Arguments({a.name: made[a.name] for a in operator.schema.arguments})
            tensor = made[argument.name]
            if not isinstance(tensor, torch.Tensor) or change(tensor) is None:
                continue
            if any(same_storage(t, tensor) for name, t in made.tensors() if name != argument.name):
                continue  # the layout of an alias is the other argument's
            made[argument.name] = change(tensor)
            args = relocate(made)
            poison(args, [name for name in operator.schema.written if name not in operator.inout])
            before, snapshot = for_reference(args), Snapshot(args)
            has_to = argument.name in (
                set(operator.strided) & set(operator.misaligned)
                if attribute == "misaligned_rows"
                else getattr(operator, attribute or "", ())
            )
            with named(f"{argument.name}, {layout}"):
                try:
                    outputs = call(operator, args, way)
                except ValueError as error:
                    assert not has_to, f"refused: {error}"
                    assert_names(operator, argument.name, error)
                    snapshot.assert_unchanged()
                    continue
                snapshot.assert_unchanged(but=operator.schema.written)
                operator.compare(case, before, outputs)


def bad_rows(operator, args, device) -> list[Bad]:
    """The operator's own rows, and those that hold for any tensor."""
    rows = [row for row in operator.bad if checks_values(device) or not row.by_value]
    tensors = {name: t for name, t in args.items() if isinstance(t, torch.Tensor)}
    for name, tensor in tensors.items():
        wrong = torch.int16 if tensor.dtype.is_floating_point else torch.float64
        many = tensor.reshape((1,) * (6 - tensor.dim()) + tuple(tensor.shape)) if tensor.dim() < 6 else None
        generic = {"dtype": tensor.to(wrong), "rank": many}
        if device != "cpu" and len(tensors) > 1:
            generic["device"] = tensor.cpu()
        for kind, value in generic.items():
            if value is not None and f"{name}.{kind}" not in operator.accepts:
                # Of two devices, dtypes or ranks that differ, either argument may be the one named.
                names = "|".join(tensors)
                rows.append(bad_value(name, value, label=f"{name}.{kind}", names=names))
    for argument in operator.schema.arguments:
        # Float64 in six dimensions is wrong for whatever the typical case goes without.
        if (
            argument.type == "Tensor?"
            and args[argument.name] is None
            and f"{argument.name}.given" not in operator.accepts
        ):
            value = torch.zeros((1,) * 6, dtype=torch.float64, device=device)
            refused = (ValueError, NotImplementedError)
            # It may also say what the argument asks of another one.
            names = "|".join(a.name for a in operator.schema.arguments if a.is_tensor)
            label = f"{argument.name}.given"
            rows.append(bad_value(argument.name, value, label=label, exception=refused, names=names))
    return rows


@check(typical)
def refuses_bad_arguments(operator, device, case):
    """The documented exception for a wrong argument of each kind, a message that names it, and nothing written."""
    for row in bad_rows(operator, arguments(operator, device, case), device):
        for label in ("torch.ops", "python"):
            args = arguments(operator, device, case)
            snapshot = Snapshot(args)
            row.mutate(args)
            # Where the two calling forms cannot be told apart, the Python function may say so.
            refused = row.exception if isinstance(row.exception, tuple) else (row.exception,)
            allowed = (*refused, TypeError) if label == "python" else refused
            with named(f"{row.label}, {label}"):
                try:
                    ways(operator)[label](args)
                except allowed as error:
                    assert_names(operator, row.names or row.argument, error)
                except Exception as error:
                    text = f"{type(error).__name__}, expected {row.exception}: {error}"
                    raise AssertionError(text) from error
                else:
                    raise AssertionError("accepted")
                snapshot.assert_unchanged()


def assert_names(operator, argument, error) -> None:
    if isinstance(error, TypeError):
        assert operator.name in str(error), f"the message does not name the operator: {error}"
        return
    pattern = rf"^{operator.name}: .*\b({argument})\b"
    assert re.search(pattern, str(error)), f"the message does not match {pattern!r}: {error}"
    assert ", expected " in str(error), f"the message does not say what is expected: {error}"


@check(typical)
def has_a_bad_row_for_each_argument(operator, device, case):
    """The harness has rows for each tensor; the others need one of the operator's own."""
    generic = {a.name for a in operator.schema.arguments if a.type in ("Tensor", "Tensor?")}
    excused = {a.name for a in operator.schema.arguments if a.type.startswith(("bool", "Generator"))}
    siblings = [other for other in OPERATORS if other.name == operator.name]
    covered = {row.argument for one in siblings for row in one.bad} | {
        name for one in siblings for name in one.any_value
    }
    missing = [a.name for a in operator.schema.arguments if a.name not in generic | excused | covered]
    assert not missing, f"no wrong value of {missing} is tried, and `any_value` gives no reason"
    unknown = (covered | {key.split(".")[0] for key in operator.accepts}) - {a.name for a in operator.schema.arguments}
    assert not unknown, f"the schema has no {sorted(unknown)}"


@check(typical)
def can_be_captured(operator, device, case):
    """In a CUDA graph, replayed with other inputs."""
    if device == "cpu":
        pytest.skip("no graphs on a CPU")
    way = ways(operator)["torch.ops"]
    args = arguments(operator, device, case)
    start = Snapshot(args)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(operator, args, way)  # loads what is loaded at the first call
    torch.cuda.current_stream().wait_stream(side)
    start.restore()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call(operator, args, way)
    start.assert_unchanged()
    for seed in (1, 2):
        fresh = arguments(operator, device, case, seed)
        before = for_reference(fresh)
        for (_, tensor), (_, source) in zip(args.tensors(), fresh.tensors(), strict=True):
            bytes_of(tensor).copy_(bytes_of(source))
        graph.replay()
        torch.cuda.synchronize()
        with named(f"replay {seed}"):
            operator.compare(case, before, outputs)


@check(typical)
def can_be_compiled(operator, device, case):
    """torch.compile(fullgraph=True) traces the Python function, and functionalizes what it writes."""
    eager = copies(call(operator, arguments(operator, device, case), ways(operator)["python"]))
    torch._dynamo.reset()
    args = arguments(operator, device, case)
    # Guards and poison are for eager calls: an input of a graph has a storage of its own.
    args = args.map_tensors(torch.clone)
    compiled = torch.compile(ways(operator)["python"], fullgraph=True, backend="aot_eager")
    for name, tensor in call(operator, args, compiled).items():
        assert_same_bits(name, tensor, eager[name])


@check(typical)
def passes_opcheck(operator, device, case):
    args = arguments(operator, device, case).map_tensors(torch.clone)
    for name, tensor in args.tensors(operator.schema.written):
        if name not in operator.inout:
            tensor.zero_()
    utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
    # test_schema compares tensors with allclose, which torch does not have for 8-bit floats.
    if any(tensor.is_floating_point() and tensor.itemsize == 1 for tensor in args.values() if torch.is_tensor(tensor)):
        utils.remove("test_schema")
    operator_of_torch = getattr(torch.ops.sgl_kernel, operator.name).default
    torch.library.opcheck(operator_of_torch, tuple(args.values()), test_utils=tuple(utils))


@check(typical)
def runs_on_the_device_of_its_tensors(operator, device, case):
    """Not on the current one."""
    if device == "cpu" or torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.cuda.device(0):
        matches_reference(operator, "cuda:1", case)
        assert torch.cuda.current_device() == 0


@check(lambda operator: [row for row in operator.cases if row.large])
def indexes_beyond_32_bits(operator, device, case):
    """Rows at the ends and around the 2^31st element equal those computed alone."""
    assert operator.batch, "a large case needs `batch`: its rows are compared with rows alone"
    way = ways(operator)["torch.ops"]
    try:
        args = Arguments(operator.make(case, Draw(device, 0)))
        args = Arguments({a.name: args[a.name] for a in operator.schema.arguments})
        name, dim = next(iter(operator.batch.items()))
        rows, row_size = args[name].shape[dim], args[name].numel() // args[name].shape[dim]
        boundary = 2**31 // row_size
        picked = sorted({0, rows - 2} | ({boundary - 1} if boundary + 1 <= rows else set()))
        alone = [narrow(operator, args, row, 2).map_tensors(torch.clone) for row in picked]
        outputs = call(operator, args, way)
        for row, one in zip(picked, alone, strict=True):
            before = for_reference(one)
            for name, tensor in call(operator, one, way).items():
                whole = outputs[name].narrow(operator.batch[name], row, 2)
                assert_same_bits(f"rows {row} and {row + 1} of {name}", whole, tensor)
            operator.compare(case, before, {n: t.narrow(operator.batch[n], row, 2) for n, t in outputs.items()})
    except torch.OutOfMemoryError as error:
        pytest.skip(f"not enough memory: {str(error).splitlines()[0]}")
