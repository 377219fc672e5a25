"""The rules of tools/presubmit that need no linter."""

from tests.structure.repository import ROOT


def test_rules(capsys):
    import runpy

    presubmit = runpy.run_path(str(ROOT / "tools/presubmit/presubmit"))
    failures = presubmit["check_rules"](ROOT)
    assert not failures, "\n".join(failures)
