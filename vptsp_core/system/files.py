"""Write files that are whole or absent: under a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from vptsp_core.errors import VptspError
from vptsp_core.system.portable import replace, sync_folder

FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk or the user's quota


@contextlib.contextmanager
def replacing(path: Path, earlier: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a new file for writing. When it is whole and on disk, it replaces ``path``. Missing folders are made.

    The old file is moved to ``earlier``, if given. A process that is killed inside leaves a temporary file behind (see
    `remove_temporaries`).
    Raises VptspError: the place cannot be written. The old file is unchanged.
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
    """Return a name beside ``path`` that no other writer uses, on any machine."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def remove_temporaries(folder: Path) -> None:
    """Delete the temporary files of killed writers in a folder; call it only under a lock that all writers take."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all. Missing folders are made.
    Raises VptspError: the place cannot be written.
    """
    with replacing(path) as file:
        file.write(content)


def as_json(values: Mapping[str, Any]) -> bytes:
    """Return readable JSON."""
    return (json.dumps(values, indent=2) + "\n").encode()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write readable JSON with `write_bytes`."""
    write_bytes(path, as_json(values))


def writable_folder(path: Path) -> Path:
    """Return the folder, and make it if it is missing. Raises VptspError: it cannot be made or written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> VptspError:
    cure = "make room there and call again" if error.errno in FULL else "choose another folder"
    return VptspError(f"cannot write {path} ({error.strerror or error}); {cure}")
