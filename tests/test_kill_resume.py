"""A few kills of `tests/kill_resume.py`, which tells what they are; the whole count is for its command line."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_killed_runs_end_as_if_they_had_been_left_alone():
    command = [sys.executable, "tests/kill_resume.py", "--kills", "2", "--seed", "44"]
    command += ["--cases", "rowwise adamw gru dropout"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = re.fullmatch(r"2 kills, (\d+) runs equal to those left alone, \d+ s", done.stdout.splitlines()[-1])
    assert told and int(told[1]) >= 2
