"""Measures the kernels next to torch and every peer that can be imported, in the same run.

    python -m tools.bench --family elementwise --family sampling --json results.json
    python -m tools.bench --family gemm --json results.json --peer sgl_kernel --peer_path DIR
    python -m tools.bench --merge results.json more.json --markdown table.md --png picture.png

FlashInfer, and on a CPU llama-cpp-python, are measured wherever they can be imported. The public package whose name is
sgl_kernel, too, is measured by a process of its own: --peer sgl_kernel takes it from DIR, under the label "sgl_kernel";
ours is "ours". All take turns.
"""

import argparse
import dataclasses
import importlib
import pathlib
import sys

import torch

from tools.bench import report
from tools.bench.benchmark import Libraries
from tools.bench.measure import SECONDS, TURNS, Timing, find_ceilings
from tools.bench.peer import Peer, prepare


def optional(name: str):
    try:
        return importlib.import_module(name)
    except Exception as error:  # a peer fails to import in many ways
        print(f"{name} is not measured: {str(error).splitlines()[0]}", file=sys.stderr)
        return None


def libraries(device: str) -> Libraries:
    flashinfer = optional("flashinfer") if device == "cuda" else None
    kernels, llama = importlib.import_module("sgl_kernel"), optional("llama_cpp") if device == "cpu" else None
    return Libraries(kernels, "ours", device, flashinfer=flashinfer, torch=torch, llama=llama)


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {torch.get_num_threads()} threads"
    return "cpu"


def in_turns(measurements: dict, peer: Peer | None) -> dict[str, Timing]:
    """The timing of each implementation, here and in the peer's process."""
    for _ in range(TURNS):
        for measurement in measurements.values():
            measurement.turn()
        if peer:
            peer.turn()
    timings = {name: measurement.timing() for name, measurement in measurements.items()}
    return timings | (peer.timings() if peer else {})


def run(args) -> tuple[list[dict], int]:
    """The rows, and how many of our own implementations failed."""
    of = libraries(args.device)
    peer = Peer(args.peer, args.peer_path.split(":"), args.device, args.seconds) if args.peer else None
    ceilings = find_ceilings(args.device)
    measured = {"ours": of.kernels, "torch": of.torch, "flashinfer": of.flashinfer, "llama": of.llama}
    versions = {name: getattr(library, "__version__", "") for name, library in measured.items() if library}
    if peer:
        versions[args.peer] = peer.version
    shared = {"device": device_name(args.device), "ceilings": dataclasses.asdict(ceilings), "versions": versions}
    print(shared)
    rows, failures = [], 0
    for family in args.family or report.FAMILIES:
        for benchmark in importlib.import_module(f"tools.bench.{family}").benchmarks(of):
            if args.match not in f"{benchmark.op} {benchmark.shape}":
                continue
            if args.device == "cpu" and not benchmark.fits_cpu:
                continue
            measurements = prepare(benchmark, args.device, args.seconds)
            failures += sum(name.startswith("ours") and name not in measurements for name in benchmark.implementations)
            if peer:
                peer.prepare(family, benchmark)
            for name, timing in in_turns(measurements, peer).items():
                row = shared | {
                    "family": family,
                    "op": benchmark.op,
                    "shape": benchmark.shape,
                    "implementation": name,
                    "us": round(timing.us, 3),
                    "spread": round(timing.spread, 3),
                    "gbps": round(benchmark.bytes / timing.us * 1e-3, 1),
                    "tflops": round(benchmark.flops / timing.us * 1e-6, 2),
                    "roofline": round(ceilings.share(benchmark, timing.us), 3),
                    "how": timing.how,
                }
                rows.append(row)
                print(
                    f"{row['op']:28} {row['shape']:24} {name:16} {row['us']:10.2f} µs ±{row['spread']:4.0%} "
                    f"{row['gbps']:8.1f} GB/s {row['tflops']:7.1f} TFLOP/s {row['roofline']:5.0%}  {row['how']}",
                    flush=True,
                )
            del measurements
            if args.device == "cuda":
                torch.cuda.empty_cache()
    return rows, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=report.FAMILIES, help="repeatable; all if not given")
    parser.add_argument("--match", default="", help="measure operations whose name and shape contain this")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="to repeat each implementation for")
    parser.add_argument("--json", help="where the rows go")
    parser.add_argument("--peer", help="a package to measure under its own name, in a process of its own")
    parser.add_argument("--peer_path", default="", help="where that package is: folders, divided by colons")
    parser.add_argument("--merge", nargs="+", metavar="JSON", help="measure nothing: report on these files")
    parser.add_argument("--markdown", help="where the table goes; to the standard output if not given")
    parser.add_argument("--png", help="where the picture goes (needs matplotlib)")
    args = parser.parse_args()
    rows, failures = (report.merge(args.merge), 0) if args.merge else run(args)
    if args.json:
        report.write(rows, args.json)
    if args.png:
        report.picture(rows, args.png)
    table = report.markdown(rows)
    if args.markdown:
        pathlib.Path(args.markdown).write_text(table)
    elif args.merge:
        print(table, end="")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
