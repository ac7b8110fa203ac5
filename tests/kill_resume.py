"""Kill training at random moments, resume it, compare: python tests/kill_resume.py --kills 50 [--seed N] [--cases A,B]

Each case has another method, optimiser, pipeline or selection, and reads real image files, which are drawn here. One
run of the case is left alone: a real ``python -m vptsp_core train``. Then the same command runs in new folders. Its
process group gets SIGKILL one to three times. After each kill, every file with its final name must be whole, which is
checked without the project's code. The last start runs to its end. History (without the seconds), metrics, per-query
values, weights, config, names of files, and the state of model, optimisers and schedules in the last checkpoint must
then be the same bit for bit as in the run that was left alone.

A kill is *timed* (at a random moment of the run) or *aimed* (before, after or in the middle of a random write,
renaming, deletion or flush of a file). One in eight kills hits only the main process, and its two data workers live for
a few seconds longer (other processes have no data workers). After every third kill the last checkpoint is damaged: cut
short, or one byte changed. The next start must then use the checkpoint before it and say so in one line. If there is
none, it must end with one line that says what to do. This script derives the expected line from the files.

Processes are forks of this one, which has imported everything, because 50 starts would take most of the time. Only the
forks have the patches that aim and that keep the last checkpoint. The script prints a line per case, and exits with 1
if anything differs.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import vptsp_core  # noqa: E402  (first: it lets timm import torchvision)

# isort: split
import determinism  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from vptsp_core.__main__ import main as command_line  # noqa: E402
from vptsp_core.data import loading  # noqa: E402
from vptsp_core.runs import run  # noqa: E402
from vptsp_core.system import files  # noqa: E402

WORKER = 6.0  # seconds that a data worker takes to start
SHARED = ("dataset=folder", "weights=random", "batch=8", "samples_per_class=2", "steps_per_epoch=4", "epochs=4")
CASES = {
    "dense sgd gru": ("optimizer=sgd", "lr=0.01"),
    "rowwise adamw gru dropout": ("class_optimizer=rowwise", "gru_dropout=0.3"),
    "ema": ("accumulator=ema", "semantics=paper", "selection=last"),
    "cached": ("pipeline=cached", "cosine_T=2"),
    "validation": ("selection=validation", "class_optimizer=rowwise", "optimizer=sgd", "lr=0.01"),
}
KINDS = ("write", "replace", "unlink", "fsync")
FOREVER = 180.0  # seconds after which a process that still runs has hung


@dataclasses.dataclass
class Aim:
    """The moment at which a process kills its group: before, amid or after its n-th operation of a kind, from 1."""

    kind: str = ""
    n: int = 0
    how: str = "before"
    counts: Counter = dataclasses.field(default_factory=Counter)

    def wrap(self, kind: str, do: Any, half: Any = None) -> Any:
        """Return ``do`` with a counter and, if it is aimed at, a kill. ``half`` does a part of the operation."""

        def wrapped(*args: Any, **options: Any) -> Any:
            self.counts[kind] += 1
            hit = (kind, self.counts[kind]) == (self.kind, self.n)
            if hit and self.how == "amid" and half is not None:
                half(*args)
            if hit and self.how != "after":
                os.killpg(0, signal.SIGKILL)
            result = do(*args, **options)
            if hit:
                os.killpg(0, signal.SIGKILL)
            return result

        return wrapped

    def arm(self) -> None:
        """Patch all operations on files of this process with `wrap`."""
        for kind in KINDS[1:]:
            setattr(os, kind, self.wrap(kind, getattr(os, kind)))

        def opened(path: Any, mode: str) -> Any:
            file = builtins.open(path, mode)
            raw = file.write

            def half(data: Any) -> None:
                raw(memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
                file.flush()

            return _Written(file, self.wrap("write", raw, half))

        files.open = opened  # type: ignore[attr-defined]


class _Written:
    def __init__(self, file: Any, write: Any) -> None:
        self.file, self.write = file, write
        self.flush, self.fileno, self.name = file.flush, file.fileno, file.name

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()


class Case:
    """One command, and its run that was left alone.

    Args:
        folder: for all files of the case.
        images: folder of the data set.
    """

    def __init__(self, name: str, changes: tuple[str, ...], folder: Path, images: Path) -> None:
        self.name, self.folder, self.images = name, folder / name.replace(" ", "-"), images
        self.changes = changes
        self.rounds, self.found, self.spoilt = 0, Counter(), b""
        place = self.folder / "whole"
        done = subprocess.run(
            [sys.executable, "-m", "vptsp_core", *self.command(place)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        # Once more as a fork, which gives the time, the counts of file operations, and the last state.
        started = time.perf_counter()
        status = self.wait(self.start(self.folder / "counted", Aim()), FOREVER)
        assert status == 0, (self.folder / "counted" / "said").read_text()
        self.seconds = time.perf_counter() - started
        self.counts = Counter(json.loads((self.folder / "counted" / "counts").read_text()))
        assert set(KINDS) <= self.counts.keys(), "nothing to aim at"
        self.whole = outcome(place) | {"state": outcome(self.folder / "counted")["state"]}
        self.compare(self.folder / "counted")

    def command(self, place: Path) -> list[str]:
        """Return the ``train`` command that writes to the folder ``place``, also its cache of decoded images if any."""
        cache = ["--cache", str(place / "cache")] if "pipeline=cached" in self.changes else []
        return ["train", "--preset", "smoke", "--data", str(self.images), "--results", str(place / "results"),
                *cache, "--device", "cpu", "--set", *SHARED, *self.changes]  # fmt: skip

    def start(self, place: Path, aim: Aim, workers: int = 0) -> int:
        """Start the command in its own process group, with this number of data workers. Return the process number."""
        place.mkdir(parents=True, exist_ok=True)
        said = place / "said"
        said.unlink(missing_ok=True)  # data workers of a killed process may still write to the old file
        said.touch()
        pid = os.fork()
        if pid:
            with contextlib.suppress(OSError):  # parent and child both do it, so that neither has to wait
                os.setpgid(pid, pid)
            return pid
        status = 1
        try:
            os.setpgid(0, 0)
            out = os.open(said, os.O_WRONLY)
            os.dup2(out, 1)
            os.dup2(out, 2)
            write_run = run.write_run

            def kept(config: Any, path: Path, *rest: Any) -> Any:
                shutil.copyfile(path / "checkpoint.pt", place / "state.pt")
                return write_run(config, path, *rest)

            run.write_run = kept
            loading.decoders = lambda count: workers  # type: ignore[assignment]
            aim.arm()
            status = command_line(self.command(place))
            (place / "counts").write_text(json.dumps(aim.counts))
            sys.stdout.flush()
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def wait(self, pid: int, seconds: float, *, alone: bool = False) -> int | None:
        """Wait for a process, kill it after some seconds, and return its status, or None if it was killed.

        Args:
            alone: kill only the process, not its group.
        """
        until, ended, status = time.perf_counter() + seconds, 0, 0
        while not ended and time.perf_counter() < until:
            ended, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.002)
        if not ended:
            (os.kill if alone else os.killpg)(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        assert ended or seconds < FOREVER, f"{self.name}: still running after {FOREVER:g} s"
        return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else None

    def round(self, rng: random.Random, kills: int) -> int:
        """Kill a new run up to ``kills`` times, let it end, and return the number of kills."""
        self.rounds += 1
        place = self.folder / f"killed{self.rounds}"
        done, status = 0, None
        while done < kills and status is None:
            must = due(place)
            how, status = self.kill(place, rng)
            self.check(place, must, status, orphans=how == "alone" and status is None)
            if status is None:
                done += 1
                self.found[how] += 1
                check_files(place, self.spoilt)
                if rng.random() < 1 / 3:
                    self.damage(place, rng)
        while status != 0:
            must = due(place)
            self.found["between"] += bool(must) and not run_folder(place).joinpath("checkpoint.pt").exists()
            self.found["older used"] += "is used instead" in must
            self.found["refused"] += must.startswith("error")
            status = self.wait(self.start(place, Aim()), FOREVER)
            self.check(place, must, status)
            if status == 2:
                run_folder(place).joinpath("checkpoint.pt").unlink()  # as the message says
        self.compare(place)
        shutil.rmtree(place)
        return done

    def kill(self, place: Path, rng: random.Random) -> tuple[str, int | None]:
        """Start the command and kill it. Return the kind of kill, and the status if the command ended before."""
        if rng.random() < 0.5:
            if rng.random() < 0.25:
                pid = self.start(place, Aim(), workers=2)
                return "alone", self.wait(pid, WORKER + rng.uniform(0, self.seconds), alone=True)
            return "timed", self.wait(self.start(place, Aim()), rng.uniform(0, self.seconds))
        kind = rng.choice(KINDS)
        aim = Aim(kind, rng.randint(1, self.counts[kind]), rng.choice(["before", "amid", "after"]))
        return "aimed", self.wait(self.start(place, aim), FOREVER)

    def damage(self, place: Path, rng: random.Random) -> None:
        """Damage the last checkpoint, if there is one and the run is not finished."""
        folder = run_folder(place)
        if folder and (folder / "checkpoint.pt").exists() and not (folder / "metrics.json").exists():
            self.spoilt = spoil(folder / "checkpoint.pt", rng)
            self.found["damaged"] += 1

    def check(self, place: Path, must: str, status: int | None, *, orphans: bool = False) -> None:
        """Check that the last process printed the expected line and no other warning or error.

        A process that was killed may have printed nothing. If its data workers were ``orphans``, multiprocessing may
        have printed a traceback."""
        faults = ("warning", "error", *(() if orphans else ("Traceback",)))
        said = [line for line in (place / "said").read_text().splitlines() if line.startswith(faults)]
        assert (not said and (status is None or not must)) or (
            len(said) == 1 and must and said[0].endswith(must.removeprefix("error: "))
        ), f"{self.name}: it should say {must!r}, and said\n{(place / 'said').read_text()}\n({place})"
        assert status == (2 if must.startswith("error") else 0) or status is None, (place / "said").read_text()

    def compare(self, place: Path) -> None:
        """Compare the run in ``place`` with the one that was left alone."""
        ours = outcome(place)
        for key, value in self.whole.items():
            same = determinism.same(ours[key], value)
            assert same, f"{self.name}: {key} differs from the run that was left alone ({place})"
        self.found["equal"] += 1


def due(place: Path) -> str:
    """Return the end of the line about checkpoints that the next start must print, or "" if it must print none."""
    folder = run_folder(place)
    if folder is None or (folder / "metrics.json").exists():
        return ""
    last, before = (is_whole(folder / f"checkpoint{name}.pt") for name in ("", ".previous"))
    if last or (last is None and before is None):
        return ""
    if before:
        return "missing or damaged; checkpoint.previous.pt beside it is used instead"
    them = "it" if None in (last, before) else "them"
    return f"error: damaged, and no other is whole; delete {them} to start this run again"


def is_whole(path: Path) -> bool | None:
    """Return whether the last line of a checkpoint fits its bytes, or None if the file is missing."""
    if not path.exists():
        return None
    content = path.read_bytes()
    return content[-72:] == b"sha256 " + hashlib.sha256(content[:-72]).hexdigest().encode() + b"\n"


def run_folder(place: Path) -> Path | None:
    """Return the folder of the only run under ``place``, or None if it does not exist yet."""
    found = list((place / "results" / "runs").glob("*"))
    assert len(found) <= 1, found
    return found[0] if found else None


def outcome(place: Path) -> dict[str, Any]:
    """Return the content of a finished run, read without the project's code."""
    path = run_folder(place)
    assert path is not None
    with np.load(path / "queries.npz") as file:
        queries = {name: torch.from_numpy(file[name]) for name in file.files}
    record = json.loads((path / "record.json").read_text())
    state = place / "state.pt"
    saved = torch.load(state, weights_only=True) if state.exists() else {}
    return {
        "files": sorted(each.name for each in path.iterdir()),
        "folder": path.name,
        "config": (path / "config.json").read_bytes(),
        "metrics": (path / "metrics.json").read_bytes(),
        "history": pd.read_csv(path / "history.csv", dtype=str).drop(columns="seconds").to_csv(),
        "weights": load_file(path / "model.safetensors"),
        "weights' bytes": (path / "model.safetensors").read_bytes(),
        "queries": queries,
        "record": {key: record[key] for key in ("hash", "versions", "device", "data", "weights", "parameters")},
        "state": {key: saved.get(key) for key in ("learned", "optimizers", "schedules", "weights", "queries", "best")},
    }


def check_files(place: Path, spoilt: bytes) -> None:
    """Check after a kill that every file with its final name is whole, and that a finished run has all its files.

    Args:
        spoilt: the content of the checkpoint that this script damaged; no other file may be damaged.
    """
    folder = run_folder(place)
    if folder is None:
        return
    for path in folder.iterdir():
        content = path.read_bytes()
        if path.suffix == ".json":
            json.loads(content)
        elif path.suffix == ".csv":
            assert len(pd.read_csv(path)) == 4
        elif path.suffix == ".npz":
            np.load(path)["R@1"]
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".pt":
            assert content == spoilt or is_whole(path), f"{path} is not whole"
        else:
            assert path.name == "lock" or path.name.endswith(".tmp"), path
    if (folder / "metrics.json").exists():
        outcome(place)
    for store in (place / "cache").glob("*[!l]") if (place / "cache").exists() else ():  # not *.partial
        if store.is_dir():
            sizes = np.load(store / "sizes.npy")
            assert (store / "pixels.u8").stat().st_size == sizes.prod(1).sum() * 3


def spoil(path: Path, rng: random.Random) -> bytes:
    """Cut a file short, or change one of its bytes. Return its new content."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if rng.random() < 0.5:
        content = content[:place]
    else:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return bytes(content)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng, started = random.Random(args.seed), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        images = determinism.write_images(Path(folder) / "images")
        cases = [Case(name, CASES[name], Path(folder), images) for name in args.cases.split(",")]
        left = args.kills
        try:
            while left > 0:
                for case in cases:
                    left -= case.round(rng, min(left, rng.choice([1, 1, 2, 3]))) if left else 0
        except AssertionError as error:
            print(f"seed {args.seed}: {error}", file=sys.stderr)
            return 1
        finally:
            columns = ("timed", "alone", "aimed", "damaged", "older used", "between", "refused", "equal")
            table = pd.DataFrame({case.name: {c: case.found[c] for c in columns} for case in cases}).T
            print(table.to_string())
    seconds = time.perf_counter() - started
    print(f"{args.kills} kills, {int(table['equal'].sum())} runs equal to those left alone, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    vptsp_core.run  # noqa: B018  (imports what a fork would import)
    sys.exit(main())
