"""Files that are whole or absent: written to a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from vptsp_core.errors import VptspError


@contextlib.contextmanager
def replacing(path: Path, earlier: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` once it is whole and on the disk; folders are made.

    A process that is killed in it leaves a temporary file behind (see `remove_temporaries`).

    Args:
        earlier: where the file whose place is taken goes; without it, that is gone.

    Raises:
        VptspError: the place cannot be written; what lay there is there still.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def remove_temporaries(folder: Path) -> None:
    """Delete what writers that were killed left in a folder, in which nobody else may be writing."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


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
