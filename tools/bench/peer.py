"""A peer that has our package's name: it is measured by a process of its own, in turns with this one."""

import importlib
import multiprocessing
import sys

import torch

from tools.bench.benchmark import Benchmark, Libraries
from tools.bench.measure import SECONDS, Measurement, Timing, make_sets


def prepare(benchmark: Benchmark, device: str, seconds: float = SECONDS) -> dict[str, Measurement]:
    """A measurement for each implementation that works; what fails is told and left out."""
    measurements = {}
    sets = make_sets(benchmark, device) if benchmark.implementations else []
    for name, function in benchmark.implementations.items():
        try:
            measurements[name] = Measurement(benchmark, function, sets, device, seconds)
        except Exception as error:
            print(
                f"{benchmark.op} {benchmark.shape} {name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr
            )
    return measurements


def serve(connection, package: str, paths: list[str], device: str, seconds: float) -> None:
    """The peer's process: sends its version, then answers ("prepare", family, op, shape) with the number of
    measurements that wait for turns, ("turn",) with None, ("timings",) with {name: Timing}."""
    sys.path[:0] = paths
    of = Libraries(importlib.import_module(package), package, device)
    connection.send(getattr(of.kernels, "__version__", ""))
    benchmarks, measurements = {}, {}
    while True:
        try:
            request, *arguments = connection.recv()
        except EOFError:
            return
        if request == "prepare":
            family, *key = arguments
            if family not in benchmarks:
                module = importlib.import_module(f"tools.bench.{family}")
                benchmarks[family] = {(b.op, b.shape): b for b in module.benchmarks(of)}
            benchmark = benchmarks[family].get(tuple(key))
            measurements = prepare(benchmark, device, seconds) if benchmark else {}
            connection.send(len(measurements))
        elif request == "turn":
            for measurement in measurements.values():
                measurement.turn()
            connection.send(None)
        elif request == "timings":
            timings = {name: measurement.timing() for name, measurement in measurements.items()}
            measurements = {}
            if device == "cuda":
                torch.cuda.empty_cache()
            connection.send(timings)


class Peer:
    """This side of that process."""

    def __init__(self, package: str, paths: list[str], device: str, seconds: float):
        context = multiprocessing.get_context("spawn")  # a CUDA context does not survive a fork
        self._connection, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, package, paths, device, seconds), daemon=True)
        process.start()
        theirs.close()  # so that the end of that process shows here as the end of the pipe
        self.version = self._connection.recv()

    def _ask(self, *request):
        self._connection.send(request)
        return self._connection.recv()

    def prepare(self, family: str, benchmark: Benchmark) -> None:
        self._ask("prepare", family, benchmark.op, benchmark.shape)

    def turn(self) -> None:
        self._ask("turn")

    def timings(self) -> dict[str, Timing]:
        return self._ask("timings")
