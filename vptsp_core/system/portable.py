"""Handle the differences between Linux, macOS and Windows. No other module asks which system this is."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import psutil

PATIENCE = 5.0  # seconds to wait for another program to close a file that must be replaced
CGROUP = "/sys/fs/cgroup"  # the limits of a container or a Slurm job
_OPEN_ELSEWHERE = (5, 32)  # Windows: access denied, sharing violation


def cores() -> int:
    """Return the number of cores that this process may use, by its affinity and the limit of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit ("max")
        quota, period = map(int, Path(CGROUP, "cpu.max").read_text("ascii").split())
        count = min(count, -(-quota // period))
    return max(1, count)


def physical_cores() -> int:
    """Return `cores`, but count the two threads of one core once: matrix products gain nothing from the second."""
    return min(cores(), psutil.cpu_count(logical=False) or cores())


def processor() -> str:
    """Return the processor's name, or its architecture if the system does not report it."""
    with contextlib.suppress(OSError):  # Linux; there, platform.processor() is empty or the architecture
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine() or "cpu"


def available_memory() -> int:
    """Return the bytes of memory that this process can still take without swapping, also within its container."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit ("max")
        limit, used = (int(Path(CGROUP, f"memory.{name}").read_text("ascii")) for name in ("max", "current"))
        free = min(free, max(limit - used, 0))
    return free


def replace(source: Path, target: Path) -> None:
    """Move a file to the place of another.

    Windows refuses while another program, such as a virus scanner, has ``target`` open. Then try again for `PATIENCE`.
    Raises OSError: it cannot be moved. The message says if the file is open elsewhere.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if getattr(error, "winerror", None) not in _OPEN_ELSEWHERE:
                raise
            if time.monotonic() > end:
                raise PermissionError(error.errno, "another program has it open: close it there") from error
            time.sleep(0.1)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to disk, so that a power failure does not lose a renamed file."""
    with contextlib.suppress(OSError):  # Windows and some network file systems cannot do it
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def ctrl_c_blocked() -> Iterator[None]:
    """Processes that are started inside ignore a terminal's Ctrl-C: this process ends them.

    A Ctrl-C that comes meanwhile reaches this process at the end. Windows cannot do this, so a starting process may
    print a traceback there.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its first start would unblock Ctrl-C in this thread
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
