"""A run's checkpoints on the disk: the last one and the one before it, each whole and with the checksum of its bytes.

A checkpoint is what ``torch.save`` writes and one more line, ``sha256 <64 hexadecimal digits>``, over all before it;
``torch.load`` does not mind. So content and checksum come to their place by one renaming. They are written in this
order, and a process that is killed at any moment leaves one that is whole:

1. the new one under a temporary name, its checksum at its end, and all of it on the disk;
2. checkpoint.pt becomes checkpoint.previous.pt;
3. the new one becomes checkpoint.pt (killed between the two, a run goes on from checkpoint.previous.pt).

For a moment three lie there, otherwise two. The checksum is made while the bytes pass, without a copy of them: 1 s a GB
on one core of the EPYC that the README names, so 26 s an epoch for the largest table (26 GB; what has to come to the
disk takes as long at 1 GB/s), and as much when a run goes on.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from vptsp_core.errors import VptspError, WeightsError
from vptsp_core.system.files import replacing

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
_LABEL = b"sha256 "
_LINE = len(_LABEL) + 64 + 1
_CHUNK = 2**20


class Found(NamedTuple):
    """A whole checkpoint: the file's name and its last line, which no other content has."""

    name: str
    checksum: bytes


class _Hashed:
    """A file to write, and the checksum of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint(folder: Path, run: str, values: Mapping[str, Any]) -> None:
    """Put a new checkpoint beside the last one, which becomes the one before it; no copy of the tensors is made.

    Args:
        run: whose checkpoint it is (`read_checkpoint`).
        values: what ``torch.load(..., weights_only=True)`` can read back.

    Raises:
        VptspError: the folder cannot be written; both that were there are there still.
    """
    with replacing(folder / CHECKPOINT, earlier=folder / PREVIOUS) as file:
        hashed = _Hashed(file)
        try:
            torch.save({"config": run, **values}, hashed)  # type: ignore[arg-type]  # it only writes
        except RuntimeError as error:  # torch closes its archive, fails again, and hides why
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.write(_line(hashed.digest.hexdigest()))


def find_checkpoint(folder: Path) -> Found | None:
    """The last whole checkpoint of a folder, every byte of which was compared with its checksum; None without any.

    Where the last one is damaged or missing, and the one before it is whole, a warning says that this one is used.
    The damaged one is deleted then: it must not become the one before the next.

    Raises:
        WeightsError: there are some, and none is whole.
    """
    faults: dict[str, str] = {}
    for name in (CHECKPOINT, PREVIOUS):
        path = folder / name
        try:
            checksum = _checksum(path)
        except FileNotFoundError:
            faults[name] = "missing"
        except OSError as error:
            raise WeightsError(f"checkpoint {path}: cannot be read ({error.strerror}); mend or delete it") from error
        except _Damaged as error:
            faults[name] = f"damaged ({error})"
        else:
            if faults:
                fault = f"checkpoint {folder / CHECKPOINT}: {faults[CHECKPOINT]}"
                warnings.warn(f"{fault}; {name} beside it is used instead", stacklevel=2)
                (folder / CHECKPOINT).unlink(missing_ok=True)
            return Found(name, checksum)
    bad = [name for name, fault in faults.items() if fault != "missing"]
    if not bad:
        return None
    also = f", and so is {PREVIOUS}" if len(bad) == 2 else ", and there is no other"
    it = "both" if len(bad) == 2 else "it"
    raise WeightsError(f"checkpoint {folder / bad[0]}: {faults[bad[0]]}{also}; delete {it} to start this run again")


def read_checkpoint(folder: Path, found: Found, run: str, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a checkpoint that `find_checkpoint` found, here or in another process of the group.

    Tensors are mapped, not read: of the class prompts there is one copy, where they are put.

    Args:
        run: its identity; ``made_with``: what the run is gone on with (`runs.record.make_stretch`).

    Raises:
        WeightsError: it belongs to another run, was begun with other images or weights, or another version of torch
            wrote it.
        VptspError: in this folder lies another file than the first process found.
    """
    path = folder / found.name
    try:
        with open(path, "rb") as file:
            own = _last_line(file)
    except (OSError, _Damaged):
        own = b""
    if own != found.checksum:
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


class _Damaged(Exception):
    pass


def _line(digest: str) -> bytes:
    return _LABEL + digest.encode() + b"\n"


def _last_line(file: IO[bytes]) -> bytes:
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _LINE))
    line = file.read()
    if length < _LINE or not (line.startswith(_LABEL) and line.endswith(b"\n")):
        raise _Damaged("cut short, or of an older version")
    return line


def _checksum(path: Path) -> bytes:
    """A file's last line, which fits all bytes before it."""
    with open(path, "rb") as file:
        line = _last_line(file)
        rest, digest, buffer = file.tell() - _LINE, hashlib.sha256(), memoryview(bytearray(_CHUNK))
        file.seek(0)
        while rest > 0:
            count = file.readinto(buffer[: min(rest, _CHUNK)])  # type: ignore[attr-defined]
            if not count:
                raise _Damaged("cut short")
            digest.update(buffer[:count])
            rest -= count
    if line != _line(digest.hexdigest()):
        raise _Damaged("its bytes do not fit its checksum")
    return line
