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
    """Say in a run's folder how many of its epochs are done.

    Raises:
        VptspError: the folder cannot be written.
    """
    write_json(folder / PROGRESS, {"done": done, "epochs": epochs})


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Inside, only this process (of a group: the first one) trains this run, and others see that it does.

    Two that train the same run would overwrite each other's checkpoint, so the second waits, and then reads what the
    first has left. If a process dies, the system frees its lock; the next one deletes its temporary files.
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


class Watch:
    """Which runs are under way.

    A run that was killed leaves its file behind. So a file that was there from the start counts only once it has
    changed, by the file system's own time: no clocks are compared.

    Args:
        folders: lists the runs' folders, again at each look; they need not exist.
    """

    def __init__(self, folders: Callable[[], Iterable[Path]]) -> None:
        self.folders = folders
        self.before = {folder: _changed(folder) for folder in folders()}

    def running(self) -> dict[Path, str]:
        """For each run under way, such words as "vptsp-1a2b epoch 2/4"."""
        found = {}
        for folder in self.folders():
            changed = _changed(folder)
            if changed is None or changed == self.before.get(folder):
                continue
            with contextlib.suppress(OSError, ValueError, KeyError):  # it may just have ended
                read = json.loads((folder / PROGRESS).read_text("utf-8"))
                epoch = f" epoch {min(read['done'] + 1, read['epochs'])}/{read['epochs']}" if read["epochs"] else ""
                found[folder] = short_name(folder) + epoch
        return found

    def line(self) -> str:
        """All of `running` in one line; empty where nothing runs."""
        words = list(self.running().values())
        more = [f"{len(words) - _SHOWN} more"] if len(words) > _SHOWN else []
        return ", ".join(words[:_SHOWN] + more)


def short_name(folder: Path) -> str:
    """A run's method and the first letters of its hash.

    >>> short_name(Path("results/runs/glyphs-vptsp-1a2b3c4d"))
    'vptsp-1a2b'
    """
    method, digest = folder.name.split("-")[1:3]
    return f"{method}-{digest[:4]}"


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


def _changed(folder: Path) -> int | None:
    try:
        return (folder / PROGRESS).stat().st_mtime_ns
    except OSError:
        return None
