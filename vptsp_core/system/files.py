"""Files that are whole or absent: written to a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from vptsp_core.errors import VptspError
from vptsp_core.system.portable import replace, sync_folder


@contextlib.contextmanager
def replacing(path: Path, earlier: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` once it is whole and on the disk; folders are made. What was
    there is moved to ``earlier``, if given.

    A process that is killed in it leaves a temporary file behind (see `remove_temporaries`).
    Raises VptspError: the place cannot be written; the file that was there is unchanged.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if earlier is not None and path.exists():
            replace(path, earlier)
        replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that no other writer has, on any machine."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def remove_temporaries(folder: Path) -> None:
    """Delete what killed writers left in a folder; call it only where a lock keeps other writers out."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all; folders are made.
    Raises VptspError: the place cannot be written.
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
    """The folder, made if need be. Raises VptspError: it cannot be made or written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> VptspError:
    return VptspError(f"cannot write {path} ({error.strerror or error}); choose another folder")
