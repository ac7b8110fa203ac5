"""A file that is not whole yet, what it is part of, and whether a whole one is the right one."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


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
