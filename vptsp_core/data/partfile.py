"""A file that is not whole yet, what it is part of, and whether a whole one is the right one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def mismatch(path: Path, size: int | None, checksum: str | None) -> str:
    """What is wrong with a file, expected and found; empty where nothing is."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"{found} bytes instead of {size}"
    if checksum is not None:
        kind, _, expected = checksum.partition(":")
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
        if digest != expected.lower():
            return f"{kind} {digest} instead of {expected}"
    return ""


@contextlib.contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock file ``path`` alone among processes and threads; says ``waiting`` while another holds it.

    Who is done deletes the file. Who waited then holds a file that is not in its place any more, and takes the new one.
    Where the file system has no locks it goes on without one, and says so.
    """
    while True:
        with _opened(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(waiting, file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                print(f"{path.parent}: no locks on this file system; run one process at a time", file=sys.stderr)
            if not _in_place(file, path):
                continue
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
            return


def _opened(path: Path) -> IO[bytes]:
    """A file left behind by another user can be locked through a handle that only reads."""
    try:
        return open(path, "ab")
    except PermissionError:
        return open(path, "rb")


def _in_place(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def amount(count: float) -> str:
    """Bytes for people: MB, from ten GB on GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e10 else f"{count / 1e6:.1f} MB"


class PartFile:
    """The unfinished file ``<target>.part``, and beside it which source's version came last."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")
        self.lock = target.with_name(f"{target.name}.lock")

    @property
    def length(self) -> int:
        """How much of the file there is."""
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self, source: str) -> str | None:
        """The ETag or date that this source gave with its bytes; None where another source's came last."""
        try:
            note = json.loads(self.note.read_text())
            return str(note["version"]) if note["source"] == source and note["version"] else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def begin(self, source: str, version: str | None) -> None:
        """Note that the bytes from now on are this source's present version."""
        self.note.write_text(json.dumps({"source": source, "version": version}))

    def discard(self) -> None:
        """Delete it."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def finish(self) -> None:
        """Put it in place."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.path, self.target)
        self.note.unlink(missing_ok=True)
