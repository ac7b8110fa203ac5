"""Start processes that begin empty (spawn) on every system, and that end with this process."""

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
    """Start processes inside. They ignore a terminal's Ctrl-C and do not import the main module.

    If they imported it, a script without ``if __name__ == "__main__"`` would run again in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        with ctrl_c_blocked():
            yield
    finally:
        sys.modules["__main__"] = main


def end_with_parent(*_: object) -> None:
    """Call this in a started process: it ends when its parent ends, even if the parent is killed.

    `torch.utils.data.DataLoader` passes the number of the data worker, which is ignored.
    """
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def end_children() -> None:
    """Kill all processes that this one has started: nobody needs their results any more."""
    for process in multiprocessing.active_children():
        process.kill()
