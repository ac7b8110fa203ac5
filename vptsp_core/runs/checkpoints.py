"""A run's checkpoints: the last one and the one before it, each whole and with the checksum of its bytes.

A checkpoint is what ``torch.save`` writes, and one more line, ``sha256 <64 hexadecimal digits>``, which ``torch.load``
ignores. At least one whole checkpoint exists at any time, even if the process is killed, because

1. the new one is written to the disk under a temporary name, with its checksum;
2. checkpoint.pt becomes checkpoint.previous.pt;
3. the new one becomes checkpoint.pt (a run that is killed between 2 and 3 resumes from checkpoint.previous.pt).

The disk needs room for three. The checksum takes about 1 s per GB, when a checkpoint is written and when a run resumes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vptsp_core.errors import VptspError, WeightsError
from vptsp_core.system.files import replacing
from vptsp_core.system.seals import digest

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
_LENGTH = len("sha256 ") + 64 + 1  # of the last line


class Checkpoint(NamedTuple):
    """A whole checkpoint: the name of the file, and its last line, which identifies the content."""

    name: str
    line: bytes


def write_checkpoint(folder: Path, run: str, values: Mapping[str, Any]) -> None:
    """Write a new checkpoint. The last one becomes the previous one. Tensors are not copied in memory.

    ``run`` is the run's identity. ``torch.load(..., weights_only=True)`` must be able to read the ``values``.
    Raises VptspError: the folder cannot be written. Both earlier checkpoints still exist.
    """
    with replacing(folder / CHECKPOINT, earlier=folder / PREVIOUS) as file:
        try:
            torch.save({"config": run, **values}, file)
        except RuntimeError as error:  # torch fails again when it closes its archive, and hides the first error
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        file.write(_line(digest(Path(file.name))))


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the last whole checkpoint of a folder, or None if the folder has no checkpoint.

    If the last one is damaged or missing, a warning says that the one before it is used. A damaged last one is
    deleted, so that the next write does not keep it as the previous one.
    Raises WeightsError: there are checkpoints, but none is whole.
    """
    last, before = folder / CHECKPOINT, folder / PREVIOUS
    if line := _checked_line(last):
        return Checkpoint(CHECKPOINT, line)
    if line := _checked_line(before):
        warnings.warn(f"checkpoint {last}: missing or damaged; {PREVIOUS} beside it is used instead", stacklevel=2)
        last.unlink(missing_ok=True)
        return Checkpoint(PREVIOUS, line)
    damaged = [str(path) for path in (last, before) if path.exists()]
    if damaged:
        them = "them" if len(damaged) > 1 else "it"
        raise WeightsError(
            f"checkpoint {' and '.join(damaged)}: damaged, and no other is whole; delete {them} to start this run again"
        )
    return None


def read_checkpoint(folder: Path, checkpoint: Checkpoint, run: str, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a checkpoint that this process, or the first one of its group, has found.

    Tensors are mapped, not read, so that a large table of class prompts is in memory only once. ``run`` is the run's
    identity; ``made_with`` describes the images and weights of the call that resumes it (`runs.record.part_of_run`).
    Raises WeightsError: it is of another run, was begun with other images or weights, or torch cannot read it. Raises
    VptspError: the file is not the one that the first process found.
    """
    path = folder / checkpoint.name
    if not path.is_file() or _last_line(path) != checkpoint.line:
        raise VptspError(
            f"checkpoint {path}: not the file that the first process sees; "
            "choose a results folder that all machines see"
        )
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        same = saved.pop("config") == run
    except Exception as error:  # the checksum is right, so the bytes are those that were written
        reason = str(error).partition("\n")[0]
        fault = f"checkpoint {path}: unreadable here ({reason})"
        raise WeightsError(f"{fault}; use the versions that wrote it, or delete it to start this run again") from error
    if not same:
        raise WeightsError(f"checkpoint {path}: of another run; delete it, or choose another results folder")
    begun = saved["stretches"][-1] if saved.get("stretches") else {}
    for key, name in (("data", "images"), ("weights", "weights of the backbone")):
        if key in begun and key in made_with and begun[key] != made_with[key]:
            raise WeightsError(
                f"checkpoint {path}: begun with other {name}; give those, or delete it to start this run again"
            )
    return saved


def remove_checkpoints(folder: Path) -> None:
    """Delete both checkpoints, the older one first."""
    for name in (PREVIOUS, CHECKPOINT):
        (folder / name).unlink(missing_ok=True)


def _line(checksum: str) -> bytes:
    return f"sha256 {checksum}\n".encode()


def _last_line(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _LENGTH))
        return file.read()


def _checked_line(path: Path) -> bytes | None:
    """Return a checkpoint's last line if it is the checksum of all bytes before it, otherwise None."""
    if not path.exists() or path.stat().st_size <= _LENGTH:
        return None
    content = np.memmap(path, np.uint8, "r")
    line = _line(digest(content[:-_LENGTH].data))
    return line if _last_line(path) == line else None
