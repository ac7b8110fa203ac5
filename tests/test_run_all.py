"""./run_all.sh as people use it: stopped, then called again. Real processes, kernels and runs.

The calls run in a copy of the checkout with two small notebooks, which train real runs on a few letters.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import uuid
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

import pytest
import torch
from test_packaging import BASH, ROOT, fits_this_python

from tests.publish.test_notebooks_runner import write
from vptsp_core.publish.parameters import read
from vptsp_core.publish.runner import run_notebooks
from vptsp_core.runs.progress import PROGRESS

pytestmark = pytest.mark.skipif(
    BASH is None or not fits_this_python() or not Path("/proc/self/environ").exists(),
    reason="needs bash, /proc, and an environment that run_all.sh would use",
)
PATIENCE = 300.0  # seconds to wait for a step that takes a few seconds on a free machine
EPOCHS = 12
PARAMETERS = 'profile = "demo"\ndata = None\nresults = "results"'
TRAINS = """
from pathlib import Path
from vptsp_core import preset
from vptsp_core.runs.run import many
short = dict(dataset="folder", weights="random", batch=4, steps_per_epoch=5, epochs=EPOCHS, eval_start=EPOCHS - 1)
(run,) = many([preset("smoke", **short, seed=SEED)], data=data, results=Path(results) / profile, progress=False)
print(run.config.seed, len(run.record["stretches"]))
"""


def trains(epochs: int, seed: int) -> str:
    return TRAINS.replace("SEED", str(seed)).replace("EPOCHS", str(epochs))


class Checkout:
    """A copy of this checkout with its own notebooks."""

    def __init__(self, folder: Path, letters: Path) -> None:
        self.root, self.letters, self.results = folder / "checkout", letters, folder / "results"
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "vptsp_core", self.root / "vptsp_core", ignore=ignore)
        for name in ("run_all.sh", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
            shutil.copy(ROOT / name, self.root)
        self.notebooks = self.root / "notebooks"
        self.notebooks.mkdir()
        self.mark = f"VPTSP_TEST={uuid.uuid4()}"  # in the environment of every process of a call

    def start(self) -> Popen:
        name, value = self.mark.split("=")
        environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1", name: value}
        command = [BASH, str(self.root / "run_all.sh"), "--profile", "smoke", "--data", str(self.letters)]
        return Popen(
            [*command, "--results", str(self.results)],
            env=environment, text=True, start_new_session=True, stdout=PIPE, stderr=STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored under a shell's &
        )  # fmt: skip

    def processes(self) -> list[int]:
        """Return the processes of all calls that still run."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (path / "environ").read_bytes():
                    found.append(int(path.name))
        return found

    def executed(self, name: str) -> Path:
        return self.results / "smoke" / "notebooks" / f"{name}.ipynb"

    def printed(self, name: str) -> str:
        """Return, from an executed copy, the seed of its run and the number of calls that trained it."""
        return read(self.executed(name)).cells[-1].outputs[0]["text"].strip()

    def epochs(self) -> int:
        """Return the number of finished epochs of the long run if it is training, otherwise 0."""
        found = [0]
        for path in self.results.glob(f"smoke/runs/*/{PROGRESS}"):
            with contextlib.suppress(OSError, ValueError):
                progress = json.loads(path.read_text())
                found.append(progress["done"] if progress["epochs"] == EPOCHS else 0)
        return max(found)

    def hidden(self) -> list[str]:
        """Return files that a stopped process may have left half-written."""
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
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.02)


def test_stopped_and_called_again_until_it_is_done(checkout, capsys):
    """SIGTERM to the script alone, then Ctrl-C, which a terminal sends to all processes of the call.

    The last call is `run_notebooks` in this process, which finishes the work. Nothing is trained twice.
    """
    write(checkout.notebooks, "a_short", trains(1, 7), parameters=PARAMETERS)
    write(checkout.notebooks, "b_long", trains(EPOCHS, 1), parameters=PARAMETERS)
    reached = 0
    for stop, status in ((Popen.terminate, 143), (lambda process: os.killpg(process.pid, signal.SIGINT), 130)):
        process = checkout.start()
        until(lambda: checkout.epochs() > reached or process.poll() is not None, "the long run to learn")  # noqa: B023
        stop(process)
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == status and said.splitlines()[-1] == "stopped; run the same command again"
        assert "Traceback" not in said and checkout.hidden() == []
        until(lambda: not checkout.processes(), "kernels to end")
        assert checkout.executed("a_short").exists() and not checkout.executed("b_long").exists()
        assert checkout.epochs() == 0, "no run trains any more"
        (checkpoint,) = checkout.results.glob("smoke/runs/*/checkpoint.pt")
        before, reached = reached, len(torch.load(checkpoint, weights_only=True)["history"])
        assert before < reached < EPOCHS

    options = ("smoke", checkout.letters, checkout.results, (), None, checkout.notebooks)
    assert run_notebooks(*options) == 0
    states = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line[:2] in ("a_", "b_")]
    assert states == [["a_short", "unchanged"], ["b_long", "ok"]]
    assert checkout.printed("a_short") == "7 1" and checkout.printed("b_long") == "1 3"
    assert not checkpoint.exists() and checkout.hidden() == []
    assert len([*checkout.results.glob("smoke/runs/*/metrics.json")]) == 2
