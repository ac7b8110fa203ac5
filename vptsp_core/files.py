"""Files that are whole or absent: written to a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vptsp_core.errors import VptspError


def write_bytes(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, whole or not at all; folders are made.

    Raises:
        VptspError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise VptspError(f"cannot write {path} ({error.strerror or error}); choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """`write_bytes` of readable JSON."""
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())


def write_torch(path: Path, values: Mapping[str, Any]) -> None:
    """`write_bytes` of what ``torch.load(..., weights_only=True)`` reads back."""
    buffer = io.BytesIO()
    torch.save(dict(values), buffer)
    write_bytes(path, buffer.getvalue())


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
