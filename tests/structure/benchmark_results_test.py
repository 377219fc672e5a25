"""The files of results of tools/bench, and how they are read, written and merged."""

import json
import runpy

import pytest

from tests.structure.repository import ROOT

report = runpy.run_path(str(ROOT / "tools/bench/report.py"))
FILES = sorted((ROOT / "tools/bench/results").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_as_it_would_be_written(path, tmp_path):
    """What a run shares stands once, and each row on a line of its own."""
    rows = report["read"](path)
    assert rows and all(row["us"] > 0 and set(report["SHARED"]) <= set(row) for row in rows)
    report["write"](rows, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == path.read_text()


def row(implementation, us, version="1"):
    shared = {"device": "GPU", "ceilings": {"gbps": 1.0}, "versions": {"ours": version}}
    numbers = {"us": us, "gbps": 2.0, "tflops": 0.0, "roofline": 0.5}
    return shared | {"family": "gemm", "op": "product", "shape": "8×8", "implementation": implementation} | numbers


def test_of_two_files_the_later_one_counts(tmp_path):
    first, second, both = tmp_path / "first.json", tmp_path / "second.json", tmp_path / "both.json"
    report["write"]([row("ours", 4.0), row("torch", 6.0), row("sgl_kernel", 9.0)], first)
    report["write"]([row("ours", 3.0, version="2")], second)
    rows = report["merge"]([first, second])
    assert sorted((r["implementation"], r["us"]) for r in rows) == [("ours", 3.0), ("sgl_kernel", 9.0), ("torch", 6.0)]
    assert {r["implementation"]: r["versions"]["ours"] for r in rows} == {"ours": "2", "torch": "1", "sgl_kernel": "1"}
    table = report["markdown"](rows)
    assert "| product | 8×8 | 3.00 | 2 |  | 50% | 9.00 sgl_kernel | 3.00× | 6.00 torch | 2.00× |" in table
    (bar,) = report["bars"](rows)
    assert (bar.op, bar.mean, bar.num_shapes) == ("product", pytest.approx(2.0), 1)
    report["write"](rows, both)
    assert len(json.loads(both.read_text())) == 3 + 2
    assert report["markdown"](report["read"](both)) == table
