"""Time of one call: the median over replays of a CUDA graph, or over wall-clock repeats on a CPU, in several turns.

Calls rotate over sets of inputs that together exceed the L2 cache three times, as far as MOST_SETS sets do: what is
smaller than that is in the L2 in a server, too, which has just computed it.
"""

import statistics
import time
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from tools.bench.benchmark import Benchmark, tensors_of

MOST_SETS = 256
SECONDS = 0.3  # for each implementation, in all its turns
TURNS = 5  # A GPU's clock follows what it was doing just before: implementations are compared by taking turns.
HOST_ROUNDS = 25
REPLAY_US = 1000  # what a replay should last, so that its own launch does not show


@dataclass
class Timing:
    us: float
    spread: float  # (90th percentile − 10th) / median
    how: str


@dataclass
class Ceilings:
    """What the device was seen to reach, in the same run."""

    gbps: float = 0.0  # bytes read and written by a large copy
    tflops: float = 0.0  # a large bf16 matrix product by torch
    empty_us: float = 0.0  # a kernel that does nothing, in a graph

    def share(self, benchmark: Benchmark, us: float) -> float:
        """The least time by the ceilings, over the time it took."""
        least = 0.0
        if self.gbps:
            least = benchmark.bytes / self.gbps * 1e-3
        if self.tflops:
            least = max(least, benchmark.flops / self.tflops * 1e-6)
        return least / us


def make_sets(benchmark: Benchmark, device: str) -> list:
    torch.manual_seed(0)
    with torch.device(device):  # not while the implementations run: a default device slows each of torch's calls
        sets = [benchmark.make()]
        # What ours moves: a set may hold a weight once more, in a form that others take.
        size = benchmark.bytes or sum(t.untyped_storage().nbytes() for t in tensors_of(sets[0]))
        if device == "cuda" and benchmark.mode == "graph":
            cache = torch.cuda.get_device_properties(0).L2_cache_size
            while len(sets) < MOST_SETS and len(sets) * size < 3 * cache:
                sets.append(benchmark.make())
        return sets


class Measurement:
    """Repeats of one implementation, a turn at a time, so that others can be measured in turns with it."""

    def __init__(self, benchmark: Benchmark, function, sets: list, device: str, seconds: float = SECONDS):
        function(sets[0])  # compiles, loads, tunes
        self._times = []
        if benchmark.mode == "itself":
            self._how, self._per_turn, self._repeat = "itself", 1, lambda: function(sets[0])
        elif device == "cpu":
            repeats = max(3, min(200, int(seconds * 1e6 / _wall_us(function, sets[0]))))
            self._how, self._per_turn, self._repeat = "wall clock", repeats, lambda: _wall_us(function, sets[0])
        elif benchmark.mode == "host":
            self._how, self._per_turn, self._repeat = "host", HOST_ROUNDS, lambda: _host_us(function, sets[0])
        else:
            torch.cuda.synchronize()
            single = _events_us(lambda: function(sets[0]), 1)
            calls = max(len(sets), min(512, int(REPLAY_US / max(single, 1.0))))
            run, self._how = _captured(function, sets, calls)
            self._per_turn = max(3, min(100, int(seconds * 1e6 / (_events_us(run, calls) * calls))))
            self._repeat = lambda: _events_us(run, calls)
        if benchmark.mode != "itself":
            self._per_turn = -(-self._per_turn // TURNS)

    def turn(self) -> None:
        self._times += [self._repeat() for _ in range(self._per_turn)]

    def timing(self) -> Timing:
        times = sorted(self._times)
        median = statistics.median(times)
        spread = (times[int(0.9 * (len(times) - 1))] - times[int(0.1 * (len(times) - 1))]) / median
        return Timing(median, spread, self._how)


def _captured(function, sets, calls):
    """All calls in one graph; where a library cannot be captured, queued eager calls."""

    def run():
        for call in range(calls):
            function(sets[call % len(sets)])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function(sets[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        return run, "queued calls"
    graph.replay()
    return graph.replay, "graph"


def _events_us(run, calls: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / calls


def _host_us(function, inputs, calls=1000) -> float:
    """The caller's time for a call, the GPU keeping up."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        function(inputs)
    return (time.perf_counter() - begin) / calls * 1e6


def _wall_us(function, inputs) -> float:
    begin = time.perf_counter()
    function(inputs)
    return (time.perf_counter() - begin) * 1e6


def find_ceilings(device: str) -> Ceilings:
    gpu = device == "cuda"
    count = 2**30 if gpu else 2**26
    side = 8192 if gpu else 1024
    dtype = torch.bfloat16 if gpu else torch.float32

    def copied():
        return {"x": torch.randint(256, (count,), dtype=torch.uint8), "y": torch.empty(count, dtype=torch.uint8)}

    def multiplied():
        return {"a": torch.randn(side, side, dtype=dtype), "b": torch.randn(side, side, dtype=dtype)}

    def time_of(make, function):
        benchmark = Benchmark("ceiling", "", lambda: SimpleNamespace(**make()))
        measurement = Measurement(benchmark, function, make_sets(benchmark, device), device)
        measurement.turn()
        return measurement.timing().us

    # The copy engine's kernel or torch's own, whichever is faster.
    copies = [lambda s: s.y.copy_(s.x), lambda s: torch.neg(s.x.view(torch.int32), out=s.y.view(torch.int32))]
    return Ceilings(
        gbps=2 * count / min(time_of(copied, copy) for copy in copies) * 1e-3,
        tflops=2 * side**3 / time_of(multiplied, lambda s: torch.mm(s.a, s.b)) * 1e-6,
        empty_us=time_of(lambda: {"x": torch.zeros(1)}, lambda s: s.x.fill_(1.0)) if gpu else 0.0,
    )
