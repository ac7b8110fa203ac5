"""The fuzzer (tests/fuzz.py), for a fixed number of executions of each target."""

import fuzz
import pytest

EXECUTIONS = {"config": 400, "lists": 400, "csv": 120, "weights": 80, "images": 400}


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_nothing_but_our_own_errors_comes_out(name):
    assert fuzz.fuzz(name, 1, executions=EXECUTIONS[name]) == (EXECUTIONS[name], [])
