"""One process at a time: lock files, which the system releases when their holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_held: set[IO[bytes]] = set()


def _let_go() -> None:
    """In a process that was just forked: the lock is its parent's alone, and ends with that."""
    for file in _held:
        with contextlib.suppress(OSError):
            file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock file ``path`` alone among processes and threads; prints ``waiting``, if any, if another holds it.

    Who is done deletes the file. Who waited then holds a file that is not in its place any more, and takes the new one.
    Where the file system has no locks it goes on without one, and says so.
    """
    while True:
        with _opened(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting:
                    print(waiting, file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                print(f"{path.parent}: no locks on this file system; run one process at a time", file=sys.stderr)
            if not _in_place(file, path):
                continue
            _held.add(file)
            try:
                yield
            finally:
                _held.discard(file)
                with contextlib.suppress(OSError):
                    path.unlink()
            return


def _opened(path: Path) -> IO[bytes]:
    """A file left behind by another user can be locked through a handle that only reads."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # who held it before may have removed an empty folder,
        try:
            return open(path, "ab")
        except FileNotFoundError:
            continue  # just now, too
        except PermissionError:
            return open(path, "rb")


def _in_place(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
