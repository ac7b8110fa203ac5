"""The fuzzer (tests/fuzz.py), for a fixed number of executions of each target; and that it can find something."""

import fuzz
import pytest

from vptsp_core.errors import ConfigError

EXECUTIONS = {"config": 400, "lists": 400, "csv": 120, "weights": 80, "images": 400}


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_nothing_but_our_own_errors_comes_out(name):
    assert fuzz.fuzz(name, 1, executions=EXECUTIONS[name]) == (EXECUTIONS[name], [])


def test_what_is_not_caught_is_told_with_its_number(monkeypatch, capsys):
    def trips(rng, place):
        raise (ConfigError("our own"), KeyError("theirs"), ConfigError(" "))[int(rng.integers(3))]

    monkeypatch.setitem(fuzz.TARGETS, "config", lambda folder: trips)
    count, failures = fuzz.fuzz("config", 0, executions=30)
    assert count == 30 and 10 < len(failures) < 30
    number, told = next((int(f.split()[1][:-1]), f) for f in failures if "KeyError" in f)
    assert fuzz.fuzz("config", 0, executions=1, first=number) == (1, [told]) and "KeyError: 'theirs'" in told
    monkeypatch.setattr("sys.argv", ["fuzz.py", "--only", "config", "--number", str(number)])
    assert fuzz.main() == 1 and "1 executions, 1 uncaught" in capsys.readouterr().out
