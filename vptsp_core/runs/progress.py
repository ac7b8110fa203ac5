"""How far runs are, written to small files: any process or machine that sees the results folder can read them."""

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
_SHOWN = 4  # runs named in a line; of more, only how many


def write_progress(folder: Path, done: int, epochs: int) -> None:
    """Say in a run's folder how many of its epochs are done. Raises VptspError: the folder cannot be written."""
    write_json(folder / PROGRESS, {"done": done, "epochs": epochs})


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Inside, only this process (of a group: the first one) trains this run, and others see that it does.

    A second one waits, and then reads what the first has left. If a process dies, the system frees its lock; the next
    one deletes its temporary files.
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
    from_main(lambda: None)  # no process of a group continues before the folder is ready


def under_way(folders: Iterable[Path]) -> str:
    """The runs that are training, in one line such as "vptsp-1a2b epoch 2/4": method, beginning of the hash, epoch. A
    run that was killed counts until it resumes.
    """
    words = []
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):  # it has not begun, or has just ended
            read = json.loads((folder / PROGRESS).read_text("utf-8"))
            method, digest = folder.name.split("-")[1:3]
            epoch = f" epoch {min(read['done'] + 1, read['epochs'])}/{read['epochs']}" if read["epochs"] else ""
            words.append(f"{method}-{digest[:4]}{epoch}")
    more = [f"{len(words) - _SHOWN} more"] if len(words) > _SHOWN else []
    return ", ".join(words[:_SHOWN] + more)


@contextlib.contextmanager
def every(seconds: float, show: Callable[[], object]) -> Iterator[None]:
    """Inside, ``show`` is called again and again, in a thread."""
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
