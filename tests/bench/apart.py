"""Run a part of a measurement in its own process, so that a failure or a timeout does not affect other parts."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from argparse import Namespace
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from vptsp_core.errors import VptspError

Found = dict[str, Any]
Part = Callable[[Namespace], Found]


def apart(part: Part, args: Namespace, seconds: float) -> Found:
    """Run ``part`` in a fork, which is stopped after ``seconds``, and return its result.

    CUDA must not start in the calling process.

    Raises:
        VptspError: one line that says why there is no result.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=send, args=(part, args, sender))
    child.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise VptspError(f"stopped after {seconds:.0f} s, because the time was up; call again with the same file")
        found = receiver.recv()
    except EOFError:
        child.join()
        raise VptspError(f"failed: its process ended with status {child.exitcode}") from None
    finally:  # also ends the processes that the fork started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.join()
    if isinstance(found, str):
        raise VptspError(found)
    return found


def send(part: Part, args: Namespace, sender: Connection) -> None:
    """Send the result of ``part``, or a line that says why it failed. Runs in the fork."""
    os.setpgid(0, 0)
    try:
        sender.send(part(args))
    except VptspError as error:
        sender.send(str(error))
    except Exception as error:  # GPUs and drivers that nobody has tried may fail in any way
        traceback.print_exc()
        sender.send(f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
