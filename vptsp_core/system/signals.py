"""SIGTERM (of Slurm, a container, `kill`) ends a command as Ctrl-C does: locks are let go, half files removed; no
Ctrl-C is lost while processes are forked; and none of them outlives its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

_WATCH = "ends with its parent"


class Terminated(KeyboardInterrupt):
    """What SIGTERM raises inside of `sigterm_as_ctrl_c`."""


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated` in the main thread; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """For forking: inside, SIGINT and SIGTERM wait; at the end they do what they would have done.

    Python drops what is raised in the hooks that run around a fork (`os.register_at_fork`; logging and threading have
    some), KeyboardInterrupt among it: a Ctrl-C at that moment would be lost, and the work go on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def end_with(parent: int) -> None:
    """Nobody waits for a process whose parent was killed: from now on this one goes too, and the checkpoint stays."""
    if not any(thread.name == _WATCH for thread in threading.enumerate()):
        threading.Thread(target=_watch, args=(parent,), name=_WATCH, daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
