"""./run_all.sh as people use it: stopped, called again, called twice at once. Real processes, kernels and runs.

In a copy of the checkout whose notebooks are small: what they train are real runs of the package, on a few letters.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from test_packaging import BASH, ROOT, fits_this_python

from tests.publish.test_notebooks_runner import write
from vptsp_core.publish.parameters import read
from vptsp_core.runs.progress import PROGRESS

pytestmark = pytest.mark.skipif(
    BASH is None or not fits_this_python() or not Path("/proc/self/environ").exists(),
    reason="needs bash, /proc, and an environment that run_all.sh would use",
)
LONG = 300.0  # seconds to wait for what takes a few: other work may go on here
PARAMETERS = 'profile = "demo"\ndata = None\nresults = "results"\nseeds = [0]\nworkers = None\nchanges = {}'
TRAINS = """
from pathlib import Path
import pandas as pd
from vptsp_core import preset
from vptsp_core.paper import report
from vptsp_core.runs.run import many
short = dict(dataset="folder", weights="random", batch=4, steps_per_epoch=5, eval_start=0)
configs = [preset("smoke", **(short | changes | dict(seed=seed))) for seed in SEEDS]
runs = many(configs, data=data, results=Path(results) / profile, workers=workers, progress=False)
table = report.save_table(pd.DataFrame([run.metrics for run in runs]), Path(results) / profile, "NAME")
for run in runs: print(run.config.seed, run.record["started"], len(run.record["stretches"]))
"""


def trains(name: str, *seeds: int) -> str:
    return TRAINS.replace("SEEDS", repr(list(seeds))).replace("NAME", name)


class Checkout:
    """A copy of this one, with notebooks of its own."""

    def __init__(self, folder: Path, letters: Path) -> None:
        self.root, self.letters, self.results = folder / "checkout", letters, folder / "results"
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "vptsp_core", self.root / "vptsp_core", ignore=ignore)
        for name in ("run_all.sh", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
            shutil.copy(ROOT / name, self.root)
        self.notebooks = self.root / "notebooks"
        self.notebooks.mkdir()
        self.mark = f"VPTSP_TEST={uuid.uuid4()}"  # in the environment of all that comes of a call

    def start(self, *options: str) -> subprocess.Popen:
        name, value = self.mark.split("=")
        environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1", name: value}
        command = [BASH, str(self.root / "run_all.sh"), "--profile", "smoke", "--data", str(self.letters)]
        return subprocess.Popen(
            [*command, "--results", str(self.results), *options],
            env=environment, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored under a shell's &
        )  # fmt: skip

    def processes(self) -> list[int]:
        """What is left of all calls."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (path / "environ").read_bytes():
                    found.append(int(path.name))
        return found

    def executed(self, name: str) -> Path:
        return self.results / "smoke" / "notebooks" / f"{name}.ipynb"

    def printed(self, name: str) -> dict[int, tuple[str, int]]:
        """By seed: when its run was begun, and in how many calls it was made, as an executed copy shows it."""
        lines = read(self.executed(name)).cells[-1].outputs[0]["text"].splitlines()
        return {int(seed): (started, int(parts)) for seed, started, parts in map(str.split, lines)}

    def hidden(self) -> list[str]:
        """What a stopped process may have left half-written."""
        return [str(path) for path in self.results.rglob(".*") if path.is_file()]


@pytest.fixture
def checkout(tmp_path, letters):
    made = Checkout(tmp_path, letters)
    yield made
    left = made.processes()
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left


def until(true, what: str) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.02)


def state(said: str) -> dict[str, str]:
    """Of each notebook, from the table at the end: ok, there or failed."""
    words = [line.split() for line in said.splitlines()]
    return {line[0]: line[1] for line in words if len(line) >= 5 and line[1] in ("ok", "there", "failed")}


def test_stopped_and_called_again_until_it_is_done(checkout):
    """Ctrl-C, as a terminal sends it to all; then two workers and a SIGTERM to the script alone; then two calls at once
    that share the rest and train nothing twice."""
    write(checkout.notebooks, "a_short", trains("a_short", 7), parameters=PARAMETERS)
    longer = trains("b_long", 1, 2).replace("changes |", "changes | dict(epochs=20, eval_start=19) |")
    write(checkout.notebooks, "b_long", longer, parameters=PARAMETERS)
    folder = checkout.results / "smoke"

    def epochs() -> list[int]:
        """Done, of each run that is under way."""
        found = []
        for path in folder.glob(f"runs/*/{PROGRESS}"):
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.read_text())["done"])
        return sorted(found)

    process = checkout.start()
    until(lambda: checkout.executed("a_short").exists() and epochs()[-1:] >= [1], "the second one to learn")
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=LONG)
    assert process.returncode == 130 and said.splitlines()[-1] == "stopped; the same command resumes there"
    assert "Traceback" not in said and checkout.hidden() == []
    until(lambda: not checkout.processes(), "kernels to end")
    (half,) = folder.glob("runs/*/checkpoint.pt")
    reached = epochs_of(half)
    assert 1 <= reached < 20 and epochs() == []

    process = checkout.start("--workers", "2")
    other = lambda: {*folder.glob("runs/*/checkpoint.pt")} - {half}  # noqa: E731
    until(lambda: other() or process.poll() is not None, "the other run to learn, too")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=LONG)
    assert process.returncode == 143 and said.splitlines()[-1] == "stopped; the same command resumes there"
    # of Python, too, something may be said: by a worker that was just being forked
    until(lambda: not checkout.processes(), "kernels and workers to end")
    assert [*folder.glob("runs/*/checkpoint.pt")]

    calls = [checkout.start(), checkout.start()]
    said = [process.communicate(timeout=LONG)[0] for process in calls]
    assert [process.returncode for process in calls] == [0, 0], said
    states = [state(each) for each in said]
    assert [each["a_short"] for each in states] == ["there", "there"]
    assert sorted(each["b_long"] for each in states) == ["ok", "there"]
    parts = {seed: parts for seed, (_, parts) in checkout.printed("b_long").items()}
    assert parts[1] in (2, 3) and parts[2] == 2  # the first may have been done when the SIGTERM came
    assert checkout.printed("a_short")[7][1] == 1
    assert [*folder.glob("runs/*/checkpoint.pt")] == [] and checkout.hidden() == []
    assert len([*folder.glob("runs/*/metrics.json")]) == 3


def epochs_of(checkpoint: Path) -> int:
    import torch

    return len(torch.load(checkpoint, weights_only=True)["history"])
