"""Files that are whole or absent: written to a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from vptsp_core.errors import VptspError

ABANDONED = 24 * 3600  # seconds without a change until a temporary file counts as left behind, wherever it came from


@contextlib.contextmanager
def replacing(path: Path, earlier: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` once it is whole and on the disk; folders are made.

    A process that is killed in it leaves a temporary file behind (see `remove_temporaries`).

    Args:
        earlier: where the file whose place is taken goes; without it, that is gone.

    Raises:
        VptspError: the place cannot be written; what lay there is there still.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if earlier is not None and path.exists():
            os.replace(path, earlier)
        os.replace(temporary, path)
        _settle(path.parent)
    except OSError as error:
        raise VptspError(f"cannot write {path} ({error.strerror or error}); choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _settle(folder: Path) -> None:
    """Bring the names to the disk, too: after a power failure none may be missing that came before another."""
    with contextlib.suppress(OSError):  # not every network file system can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that no other writer has: with the place and the process that writes, and a random part.

    Two containers on one file system may have the same process ids and host names, so these alone do not tell writers
    apart.
    """
    return path.with_name(f".{path.name}.{_place()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def remove_temporaries(folder: Path) -> None:
    """Delete what writers that were killed left in a folder; others may be writing there.

    A file is deleted where its writer was a process of this place that is no more, or where it has not changed for
    `ABANDONED` seconds; the rest may be a living writer's.
    """
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if _writer_is_dead(path) or time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


def _writer_is_dead(path: Path) -> bool:
    named = re.search(r"\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}\.tmp$", path.name)
    if named is None or named[1] != _place():
        return False
    try:
        os.kill(int(named[2]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


@functools.cache
def _place() -> str:
    """Eight hex digits of where process ids are counted: the host since it was started, and the container in it."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def write_bytes(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, whole or not at all; folders are made.

    Raises:
        VptspError: the place cannot be written.
    """
    with replacing(path) as file:
        file.write(content)


def as_json(values: Mapping[str, Any]) -> bytes:
    """Readable JSON."""
    return (json.dumps(values, indent=2) + "\n").encode()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """`write_bytes` of `as_json`."""
    write_bytes(path, as_json(values))


def writable_folder(path: Path) -> Path:
    """The folder, made if need be.

    Raises:
        VptspError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise VptspError(f"cannot write {path} ({error.strerror or error}); choose another folder") from error
