"""A run's checkpoints on the disk: the last one and the one before it, each whole and with the checksum of its bytes.

A checkpoint is what ``torch.save`` writes and one more line, ``sha256 <64 hexadecimal digits>``, which ``torch.load``
ignores: one rename installs both. A whole checkpoint exists even if the process is killed at any point, because

1. the new one is written under a temporary name, with its checksum, and all of it is on the disk;
2. checkpoint.pt becomes checkpoint.previous.pt;
3. the new one becomes checkpoint.pt (killed between the two, a run resumes from checkpoint.previous.pt).

The disk needs room for three. The checksum takes about 1 s a GB, at each writing and when a run resumes.
"""

from __future__ import annotations

import hashlib
import mmap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vptsp_core.errors import VptspError, WeightsError
from vptsp_core.system.files import replacing
from vptsp_core.system.seals import digest

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
_LINE = len("sha256 ") + 64 + 1


class Found(NamedTuple):
    """A whole checkpoint: the file's name and its last line, which no other content has."""

    name: str
    checksum: bytes


def write_checkpoint(folder: Path, run: str, values: Mapping[str, Any]) -> None:
    """Put a new checkpoint beside the last one, which becomes the one before it; no copy of the tensors is made.
    ``run`` says whose it is, ``values`` are what ``torch.load(..., weights_only=True)`` can read back.
    Raises VptspError: the folder cannot be written; both earlier checkpoints are still there.
    """
    with replacing(folder / CHECKPOINT, earlier=folder / PREVIOUS) as file:
        try:
            torch.save({"config": run, **values}, file)
        except RuntimeError as error:  # torch closes its archive, fails again, and hides why
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        file.write(_line(digest(Path(file.name))))


def find_checkpoint(folder: Path) -> Found | None:
    """The last whole checkpoint of a folder; None without any.

    Where the last one is damaged or missing, a warning says that the one before it is used; the damaged one is deleted,
    so that it does not become the one before the next.
    Raises WeightsError: there are some, and none is whole.
    """
    last, before = folder / CHECKPOINT, folder / PREVIOUS
    if _is_whole(last):
        return Found(CHECKPOINT, _last_line(last))
    if _is_whole(before):
        warnings.warn(f"checkpoint {last}: missing or damaged; {PREVIOUS} beside it is used instead", stacklevel=2)
        last.unlink(missing_ok=True)
        return Found(PREVIOUS, _last_line(before))
    there = [path for path in (last, before) if path.exists()]
    if there:
        names = " and ".join(map(str, there))
        raise WeightsError(f"checkpoint {names}: damaged, and no other is whole; delete it to start this run again")
    return None


def read_checkpoint(folder: Path, found: Found, run: str, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a checkpoint that `find_checkpoint` found, here or in another process of the group.

    Tensors are mapped, not read: of the class prompts there is one copy, where they are put. ``run`` is its identity,
    ``made_with`` what the run is resumed with (`runs.record.make_stretch`).

    Raises:
        WeightsError: of another run, begun with other images or weights, or written by another version of torch.
        VptspError: in this folder is another file than the first process found.
    """
    path = folder / found.name
    if not path.is_file() or _last_line(path) != found.checksum:
        raise VptspError(
            f"checkpoint {path}: another file here than for the first process; "
            "choose a results folder that all machines see"
        )
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        same = saved.pop("config") == run
    except Exception as error:
        raise WeightsError(f"checkpoint {path}: unreadable; delete it to start this run again") from error
    if not same:
        raise WeightsError(f"checkpoint {path}: of another run; delete it, or choose another results folder")
    begun = saved["stretches"][-1] if saved.get("stretches") else {}
    for key, what in (("data", "images"), ("weights", "weights of the backbone")):
        if key in begun and key in made_with and begun[key] != made_with[key]:
            raise WeightsError(
                f"checkpoint {path}: begun with other {what}; give those, or delete it to start this run again"
            )
    return saved


def remove_checkpoints(folder: Path) -> None:
    """Delete both, the older one first."""
    for name in (PREVIOUS, CHECKPOINT):
        (folder / name).unlink(missing_ok=True)


def _line(checksum: str) -> bytes:
    return b"sha256 " + checksum.encode() + b"\n"


def _last_line(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _LINE))
        return file.read()


def _is_whole(path: Path) -> bool:
    """Whether a file is there whose last line is the checksum of all bytes before it."""
    if not path.exists() or path.stat().st_size <= _LINE:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        with memoryview(content)[:-_LINE] as rest:
            checksum = hashlib.sha256(rest).hexdigest()
    return _last_line(path) == _line(checksum)
