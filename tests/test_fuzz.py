"""Run the fuzzer (tests/fuzz.py) for a fixed number of executions per target."""

import fuzz
import pytest

EXECUTIONS = {"config": 100, "lists": 100, "csv": 40, "weights": 20, "images": 100}


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_readers_raise_only_our_own_errors(name):
    assert fuzz.fuzz(name, 1, executions=EXECUTIONS[name]) == (EXECUTIONS[name], [])
