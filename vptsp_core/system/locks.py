"""Lock files for one process at a time. If the holder dies, the system releases the lock."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_TRIES = 100  # attempts to make the lock's folder


@contextlib.contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock file ``path`` against other processes and threads. It is deleted at the end.

    A missing folder is made. If another process holds the lock, print ``waiting`` and wait. If the file system has no
    locks, print that and continue without one.
    """
    # Any user may take the lock next, even if a killed process left its file.
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
            timeout = -1  # no time limit
        except (FileNotFoundError, FileExistsError):  # the last holder just removed the folder: try again
            failed += 1
            if failed == _TRIES:
                raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(f"{path.parent}: no locks on this file system; run one process at a time", file=sys.stderr)
            return
