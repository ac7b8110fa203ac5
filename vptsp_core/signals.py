"""SIGTERM (of Slurm, a container, `kill`) ends a command as Ctrl-C does: locks are let go, half files removed; and no
Ctrl-C is lost while processes are forked."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn


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
