"""The progress of runs, in small files that every process and machine with the results folder can read."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vptsp_core.system.distributed import from_main, is_main
from vptsp_core.system.files import remove_temporaries, write_json
from vptsp_core.system.locks import locked

PROGRESS, LOCK = "progress.json", "lock"


def write_progress(folder: Path, done: int, epochs: int) -> None:
    """Write the number of finished epochs into a run's folder."""
    write_json(folder / PROGRESS, {"done": done, "epochs": epochs})


@contextlib.contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Lock a run's folder, so that only this process (or group of processes) trains the run.

    A second process waits, and then finds what the first one wrote. If the first one was killed, the system releases
    its lock, and the second one deletes the temporary files that are left.
    """
    if is_main():
        with locked(folder / LOCK, f"{folder.name}: another process trains it; waiting"):
            remove_temporaries(folder)
            write_progress(folder, 0, 0)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    (folder / PROGRESS).unlink()
    else:
        yield
    from_main(lambda: None)  # all processes of a group wait here for the first one


def training_line(folders: Iterable[Path]) -> str:
    """Return a line about the runs that are training, such as "vptsp-1a2b epoch 2/4": method, start of the hash, epoch.

    A run that was killed is shown until it resumes.
    """
    words = []
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):  # the run has not begun, or has ended
            read = json.loads((folder / PROGRESS).read_text("utf-8"))
            method, digest = folder.name.split("-")[1:3]
            epoch = f" epoch {min(read['done'] + 1, read['epochs'])}/{read['epochs']}" if read["epochs"] else ""
            words.append(f"{method}-{digest[:4]}{epoch}")
    return ", ".join(words)


@contextlib.contextmanager
def every(seconds: float, show: Callable[[], object]) -> Iterator[None]:
    """Call ``show`` every ``seconds`` in a thread, until the block ends."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            show()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
