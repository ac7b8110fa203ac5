"""Files that are whole or absent: written to a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from vptsp_core.errors import VptspError


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` once it is whole and on the disk; folders are made."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise VptspError(f"cannot write {path} ({error.strerror or error}); choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, whole or not at all; folders are made.

    Raises:
        VptspError: the place cannot be written.
    """
    with _replacing(path) as file:
        file.write(content)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """`write_bytes` of readable JSON."""
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())


def write_torch(path: Path, values: Mapping[str, Any]) -> None:
    """Like `write_bytes`, what ``torch.load(..., weights_only=True)`` reads back; no second copy of it is made."""
    with _replacing(path) as file:
        try:
            torch.save(dict(values), file)
        except RuntimeError as error:  # torch closes its archive, fails again, and hides why
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


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
