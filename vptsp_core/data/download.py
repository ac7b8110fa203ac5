"""Download files: resume them, verify them, and give them their names only when they are whole."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from vptsp_core.errors import DataError
from vptsp_core.system.bars import amount, bar
from vptsp_core.system.files import FULL
from vptsp_core.system.portable import replace

TRIES = 4  # after so many requests in a row without a new byte, a source has failed
PAUSE = 1.0  # seconds before the second try; each further pause is one second longer
TIMEOUT = 60.0  # seconds to wait for the next byte
CHUNK = 1 << 18


class _SourceFailed(Exception):
    """This source cannot give the file, but the next one may."""


def download(sources: Sequence[str], target: Path, checksum: str) -> Path:
    """Download a file to ``target``, unless the right file is there already.

    Until it is verified, its name is ``<target>.part``. The same or a later call resumes it. A file with a wrong
    checksum is deleted. A caller must keep other processes out.

    Args:
        sources: addresses of the same file; if one fails, the next one is tried.
        checksum: ``"md5:..."`` or ``"sha256:..."``, as published; empty if a file without sources has none.

    Raises:
        DataError: every source failed (with each reason), the disk is full, or ``target`` is another file.
    """
    if target.exists():
        if checksum and (wrong := _mismatch(target, checksum)):
            raise DataError(f"{target} is not the published file ({wrong}); delete it, or put the right one there")
        return target
    part, reasons = target.with_name(f"{target.name}.part"), []
    target.parent.mkdir(parents=True, exist_ok=True)
    for source in sources:
        try:
            _fetch(source, part)
            if wrong := _mismatch(part, checksum):
                part.unlink()
                raise _SourceFailed(wrong)
        except _SourceFailed as failure:
            reasons.append(f"{source}: {' '.join(str(failure).split())}")
            print(f"{target.name}: {reasons[-1]}", file=sys.stderr)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise DataError(f"{target}: the disk is full; free some space, and the same command resumes it") from error
        else:
            replace(part, target)
            return target
    raise DataError(f"{target.name}: no source gave it ({'; '.join(reasons)}); try again, or put it at {target}")


def _mismatch(path: Path, checksum: str) -> str:
    """Compare a file with its checksum: return the difference for a message, or "" if there is none."""
    kind, _, expected = checksum.partition(":")
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    return "" if actual == expected else f"{kind} {actual} instead of {expected}"


def _fetch(source: str, part: Path) -> None:
    """Append the source's further bytes to ``part``. If the connection breaks, try again."""
    tries, most = 0, _length(part)
    while True:
        try:
            if _receive(source, part):
                return
            reason = f"the connection ended after {_length(part)} bytes"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the source has no further bytes
                return
            reason = f"HTTP {error.code} {error.reason}"
            if error.code < 500:
                raise _SourceFailed(reason) from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            reason = str(error) or type(error).__name__
        tries = 1 if _length(part) > most else tries + 1
        most = max(most, _length(part))
        if tries == TRIES:
            raise _SourceFailed(f"{reason}, {tries} times in a row")
        time.sleep(PAUSE * tries)


def _receive(source: str, part: Path) -> bool:
    """Make one request and append its bytes to ``part``. Return whether the file is complete."""
    start = _length(part)
    ranges = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(source, headers={"User-Agent": "vptsp-core", **ranges})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if (response.headers.get("Content-Type") or "").startswith("text/html"):
            raise _SourceFailed("sends a web page instead of the file")
        if response.status != 206:  # the whole file, from its start
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        needed, free = (total or 0) - _length(part), shutil.disk_usage(part.parent).free
        if needed > free:
            raise DataError(f"{part.with_suffix('')}: needs {amount(needed)} more, the disk has {amount(free)} free; "
                            "free some space, or choose another --data")  # fmt: skip
        shown = bar(title=part.stem, initial=start, total=total, unit="B", unit_scale=True, show=True)
        with shown, open(part, "ab" if start else "wb") as file:
            while chunk := response.read1(CHUNK):  # read() would lose the bytes before a reset
                file.write(chunk)
                shown.update(len(chunk))
    return total is None or _length(part) == total


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
