"""One process at a time: lock files, which the system releases if their holder dies."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_TRIES = 100  # to make the lock's folder


@contextlib.contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock file ``path`` alone among processes and threads; its folder is made.

    The file holds the holder's process id and host, and is deleted at the end. Where the file system has no locks, the
    work continues without one, and a line says so.

    Args:
        waiting: what to print if another one holds the lock, such as "x: another process makes it; waiting"; the
            holder is added. Nothing is printed if it is empty.
    """
    # Every user may take the lock next, also if its file was left behind by a process that was killed.
    lock = FileLock(path, mode=0o666, poll_interval=0.2, fallback_to_soft=False, on_acquired=_sign)
    _acquire(lock, path, waiting)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on Windows filelock deletes it
            path.unlink()
        lock.release()


def _acquire(lock: FileLock, path: Path, waiting: str) -> None:
    timeout, failed = 0.0, 0
    while True:
        try:
            lock.acquire(timeout)
            return
        except Timeout:
            if waiting:
                print(f"{waiting}{_holder(path)}", file=sys.stderr)
            timeout = -1  # for as long as it takes
        except (FileNotFoundError, FileExistsError):  # the last holder has just removed the folder
            failed += 1
            if failed == _TRIES:
                raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(f"{path.parent}: no locks on this file system; run one process at a time", file=sys.stderr)
            return


def _sign(handle: int) -> None:
    """Write who holds a lock into its file. Windows keeps others from reading the first byte."""
    os.ftruncate(handle, 0)
    os.lseek(handle, 1, os.SEEK_SET)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _holder(path: Path) -> str:
    """Whom to wait for, as the end of a line; empty if the holder has not signed yet."""
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
        file.seek(1)
        found = file.read(200).decode(errors="replace")
        return f" for {found}" if found else ""
    return ""
