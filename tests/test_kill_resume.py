"""Two kills of `tests/kill_resume.py`. Start the script itself for more of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.posix("needs forks")
def test_a_killed_run_ends_like_one_that_was_left_alone():
    command = [sys.executable, "tests/kill_resume.py", "--kills", "2", "--seed", "44"]
    command += ["--cases", "rowwise adamw gru dropout"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line = re.fullmatch(r"2 kills, (\d+) runs equal to those left alone, \d+ s", done.stdout.splitlines()[-1])
    assert line and int(line[1]) >= 2
