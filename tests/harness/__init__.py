"""Tests of operators, written once: a case table, a float64 reference, a run. See operator.py.

The harness turns operators into pytest tests:

    test_norm = operator_tests(Norm(name="rmsnorm"), Norm(name="gemma_rmsnorm"))

makes a test test_norm[rmsnorm-matches_reference-cpu-dtype=bfloat16-rows=3-hidden=4096], and so on, for each operator,
each check of checks.py, each device and each case. `-k "rmsnorm and cuda"` picks some of them.
"""

import pytest

from tests.harness.checks import CHECKS
from tests.harness.compare import Expected, assert_close, assert_same_bits
from tests.harness.memory import Arguments
from tests.harness.operator import (
    OPERATORS,
    Bad,
    Case,
    Draw,
    Operator,
    bad_alias,
    bad_dtype,
    bad_index,
    bad_shape,
    bad_value,
    case,
    checks_values,
)

__all__ = [
    "OPERATORS",
    "Arguments",
    "Bad",
    "Case",
    "Draw",
    "Expected",
    "Operator",
    "assert_close",
    "assert_same_bits",
    "bad_alias",
    "bad_dtype",
    "bad_index",
    "bad_shape",
    "bad_value",
    "case",
    "checks_values",
    "operator_tests",
]


def operator_tests(*operators: Operator):
    """A test function for pytest, to be bound to a name that starts with test_."""
    OPERATORS.extend(operators)
    rows = []
    for operator in operators:
        for function, over in CHECKS:
            for device in ("cpu", "cuda"):
                marks = [pytest.mark.cuda] if device == "cuda" else []
                if function.__name__ in operator.without:
                    marks.append(pytest.mark.skip(reason=operator.without[function.__name__]))
                for one in over(operator):
                    large = one.large
                    if (large or function.__name__ in ON_A_GPU) and device == "cpu":
                        continue
                    if function.__name__ in ANYWHERE and device == "cuda":
                        continue
                    row_marks = [*marks, pytest.mark.large] if large else marks
                    text = "-".join([operator.name, function.__name__, device, str(one)])
                    rows.append(pytest.param(operator, function, device, one, id=text, marks=row_marks))

    @pytest.mark.parametrize(("operator", "check", "device", "case"), rows)
    def test(operator, check, device, case):
        check(operator, device, case)

    return test


# Checks that mean nothing on a CPU, and one that looks at the table alone.
ON_A_GPU = {"can_be_captured", "runs_on_the_device_of_its_tensors"}
ANYWHERE = {"has_a_bad_row_for_each_argument"}
