"""Processes that this one starts: they begin empty (spawn) on every system, and end with this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType

from vptsp_core.system.portable import ctrl_c_blocked

CONTEXT = multiprocessing.get_context("spawn")


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Start processes inside. They leave a terminal's Ctrl-C to this process, and do not import the main module: else a
    script without ``if __name__ == "__main__"`` would run again in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        with ctrl_c_blocked():
            yield
    finally:
        sys.modules["__main__"] = main


def end_with_parent(*_: object) -> None:
    """In a process that was started: end it when its parent is gone, however that ended. Takes a data worker's number,
    as `torch.utils.data.DataLoader` gives it.
    """
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
