"""The rules of tools/presubmit that need no linter."""

from tests.structure.repository import ROOT


def test_rules(capsys):
    import runpy

    presubmit = runpy.run_path(str(ROOT / "tools/presubmit/presubmit"))
    failures = presubmit["check_rules"](ROOT)
    assert not failures, "\n".join(failures)


def test_readme_has_the_table_of_operators():
    import runpy

    table = runpy.run_path(str(ROOT / "tools/presubmit/operator_table.py"))
    assert table["in_readme"]() == table["table"](), "run tools/presubmit/operator_table.py --write"
