"""Processes that this one starts: they begin empty (spawn) on every system, and end with this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import ModuleType

CONTEXT = multiprocessing.get_context("spawn")


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Start processes inside. They do not import the main module: else a script without
    ``if __name__ == "__main__"`` would run again in each of them."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def end_with_parent(*_: object) -> None:
    """In a process that was started: leave a terminal's Ctrl-C to its parent, and end when that is gone, however it
    ended. Takes a data worker's number, as `torch.utils.data.DataLoader` gives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def end_children() -> None:
    """End all processes that this one has started, at once: nobody waits any more for what they do."""
    for process in multiprocessing.active_children():
        process.kill()
