"""One process at a time: lock files, which the system releases if their holder dies."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_TRIES = 100  # to make the lock's folder


@contextlib.contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock file ``path`` alone among processes and threads; its folder is made, and it is deleted at the end.
    If another one holds it, ``waiting`` is printed.

    Where the file system has no locks, the work continues without one, and a line says so.
    """
    # Every user may take the lock next, also if its file was left behind by a process that was killed.
    lock = FileLock(path, mode=0o666, poll_interval=0.2, fallback_to_soft=False)
    _acquire(lock, path, waiting)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on Windows filelock deletes it
            path.unlink()
        lock.release()


def _acquire(lock: FileLock, path: Path, waiting: str) -> None:
    timeout, failed = 0.0, 0
    while not lock.is_locked:
        try:
            lock.acquire(timeout)
        except Timeout:
            if waiting:
                print(waiting, file=sys.stderr)
            timeout = -1  # for as long as it takes
        except (FileNotFoundError, FileExistsError):  # the last holder has just removed the folder: it is made again
            failed += 1
            if failed == _TRIES:
                raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(f"{path.parent}: no locks on this file system; run one process at a time", file=sys.stderr)
            return
