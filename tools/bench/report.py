"""Results as rows of JSON, a Markdown table and a picture.

A file of results is a list with one entry a line: what a run's measurements share (device, ceilings, versions), and
behind it the run's rows. In memory each row holds what its run shares, too.
"""

import json
import pathlib
import statistics
from dataclasses import dataclass

FAMILIES = [
    "elementwise",
    "sampling",
    "attention",
    "quantization",
    "gemm",
    "mixed_gemm",
    "deepseek_gemm",
    "host",
    "generate",
]


SHARED = ("device", "ceilings", "versions")


def read(path: str) -> list[dict]:
    rows, shared = [], {}
    for entry in json.loads(pathlib.Path(path).read_text()):
        if "op" in entry:
            rows.append(shared | entry)
        else:
            shared = entry
    return rows


def write(rows: list[dict], path: str) -> None:
    runs = {}
    for row in rows:
        shared = json.dumps({name: row[name] for name in SHARED if name in row})
        own = json.dumps({name: value for name, value in row.items() if name not in SHARED}, ensure_ascii=False)
        runs.setdefault(shared, []).append(own)
    lines = ",\n".join(line for shared, of_run in runs.items() for line in (shared, *of_run))
    pathlib.Path(path).write_text(f"[\n{lines}\n]\n")


def merge(paths: list[str]) -> list[dict]:
    """Rows of several files; of the same measurement in two of them, the later one."""
    rows = {}
    for path in paths:
        for row in read(path):
            rows[row["device"], row["op"], row["shape"], row["implementation"]] = row
    return list(rows.values())


def comparisons(rows: list[dict]) -> list[dict]:
    """A row for each operation and shape: ours, the best peer, torch, and how many times faster ours is."""
    groups = {}
    for row in rows:
        groups.setdefault((row["device"], FAMILIES.index(row["family"]), row["op"], row["shape"]), []).append(row)
    found = []
    # Rows stay in the order in which they were measured, family by family.
    for key in sorted(groups, key=lambda key: (key[0], key[1])):
        group = groups[key]
        ours = min((r for r in group if r["implementation"].startswith("ours")), key=lambda r: r["us"], default=None)
        others = [r for r in group if not r["implementation"].startswith("ours")]
        peers = [r for r in others if not r["implementation"].startswith("torch")]
        by_torch = [r for r in others if r["implementation"].startswith("torch")]
        found.append(
            {
                "device": key[0],
                "family": FAMILIES[key[1]],
                "op": key[2],
                "shape": key[3],
                "ours": ours,
                "peer": min(peers, key=lambda r: r["us"], default=None),
                "torch": min(by_torch, key=lambda r: r["us"], default=None),
            }
        )
    return found


def markdown(rows: list[dict]) -> str:
    text = [
        "| op | shape | ours, µs | GB/s | TFLOP/s | of roofline | best peer, µs | faster by | torch, µs | faster by |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]

    def against(ours, other):
        if other is None:
            return ["", ""]
        name = other["implementation"]
        ratio = f"{other['us'] / ours['us']:.2f}×" if ours else ""
        return [f"{other['us']:.2f} {name}", ratio]

    for row in comparisons(rows):
        ours = row["ours"]
        cells = [row["op"], row["shape"]]
        if ours:
            cells += [f"{ours['us']:.2f}", f"{ours['gbps']:.0f}" if ours["gbps"] else ""]
            cells += [f"{ours['tflops']:.1f}" if ours["tflops"] else "", f"{ours['roofline']:.0%}"]
        else:
            cells += ["", "", "", ""]
        text.append("| " + " | ".join(cells + against(ours, row["peer"]) + against(ours, row["torch"])) + " |")
    return "\n".join(text) + "\n"


@dataclass
class Bar:
    """How many times faster than the best of all others: an operation's geometric mean over its shapes."""

    op: str
    mean: float
    least: float
    most: float
    num_shapes: int


def bars(rows: list[dict]) -> list[Bar]:
    ratios = {}
    for row in comparisons(rows):
        others = [other["us"] for other in (row["peer"], row["torch"]) if other]
        if row["ours"] and others:
            ratios.setdefault(row["op"], []).append(min(others) / row["ours"]["us"])
    return [Bar(op, statistics.geometric_mean(of), min(of), max(of), len(of)) for op, of in ratios.items()]


def picture(rows: list[dict], path: str) -> None:
    """The bars, one below the other, each with a line from its least to its most."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = bars(rows)
    figure, axes = plt.subplots(figsize=(10, 0.9 + 0.24 * len(drawn)))
    places = range(len(drawn), 0, -1)
    colors = ["#2a6f97" if bar.mean >= 1.0 else "#c1666b" for bar in drawn]
    axes.barh(places, [bar.mean for bar in drawn], color=colors, height=0.72)
    axes.hlines(places, [bar.least for bar in drawn], [bar.most for bar in drawn], color="black", linewidth=1.2)
    axes.set_yticks(places, [bar.op for bar in drawn], fontsize=8)
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=0.8)
    for place, bar in zip(places, drawn, strict=True):
        span = f", {bar.least:.2f} to {bar.most:.2f} over {bar.num_shapes} shapes" if bar.num_shapes > 1 else ""
        axes.text(1.1 * max(bar.most, 1.0), place, f"{bar.mean:.2f}{span}", va="center", fontsize=7)
    axes.set_xlim(right=12 * max([1.0, *(bar.most for bar in drawn)]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    devices = ", ".join(sorted({row["device"] for row in rows}))
    axes.set_title(f"times faster than the best of the other libraries, {devices}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.01)
    figure.tight_layout()
    figure.savefig(path, dpi=85)
