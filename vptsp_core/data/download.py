"""Files from the network: resumed, verified, and in place only when they are whole."""

from __future__ import annotations

import errno
import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from vptsp_core.errors import DataError
from vptsp_core.system.bars import bar
from vptsp_core.system.portable import replace

TRIES = 4  # of one source, in a row, without a byte more
PAUSE = 1.0  # seconds before the second try, one more before each further one
TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 18
FULL = (errno.ENOSPC, errno.EDQUOT)


def download(sources: Sequence[str], target: Path, checksum: str, size: int | None = None) -> Path:
    """Have the file at ``target``; nothing is done where the right file is there already.

    Until it is verified it is ``<target>.part``, which the same or a later call resumes.

    Args:
        sources: addresses of the same file; if one fails, the next one is tried.
        checksum: ``"md5:..."`` or ``"sha256:..."``, as published.
        size: bytes, as published; None: not known.

    Raises:
        DataError: no source gave the file (with the reason for each), the disk is full, or ``target`` is another file.
    """
    part, reasons = target.with_name(f"{target.name}.part"), []
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        if wrong := mismatch(target, checksum):
            raise DataError(f"{target} is not the published file ({wrong}); delete it, or put the right one there")
        return target
    for source in sources:
        try:
            _fetch(source, part, checksum, size)
        except OSError as error:
            if error.errno in FULL:
                raise DataError(f"{target}: the disk is full; free some, the same command resumes it") from error
            reasons.append(f"{source}: {' '.join(str(error).split())}")
            print(f"{target.name}: {reasons[-1]}", file=sys.stderr)
        else:
            replace(part, target)
            return target
    raise DataError(f"{target.name}: no source gave it ({'; '.join(reasons)}); try again, or put it at {target}")


def mismatch(path: Path, checksum: str) -> str:
    """What a file's checksum is instead of the right one; empty if it is the right one."""
    kind, _, expected = checksum.partition(":")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    return "" if found == expected else f"{kind} {found} instead of {expected}"


def _fetch(source: str, part: Path, checksum: str, size: int | None) -> None:
    """Make ``part`` the published file. A request that fails or is cut short is made again for the bytes that it lacks.

    The checksum decides whether what came in several pieces is one file; if it is not, the file is fetched once more
    from its start.

    Raises:
        OSError: the source does not give the file, or the disk is full.
    """
    resumed, tries, most, reason = _length(part) > 0, 0, _length(part), ""
    while tries < TRIES:
        try:
            _receive(source, part, size)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            reason = str(error) or type(error).__name__
            tries = 1 if _length(part) > most else tries + 1
            most = max(most, _length(part))
            time.sleep(PAUSE * tries)
            continue
        if not (wrong := mismatch(part, checksum)):
            return
        part.unlink()
        if not resumed:
            raise OSError(wrong)
        print(f"{part.stem}: {wrong}, after a partial file was resumed; starting over", file=sys.stderr)
        resumed, most = False, 0
    raise OSError(f"{reason}, {tries} times in a row")


def _receive(source: str, part: Path, size: int | None) -> None:
    """One request, for the bytes after those that ``part`` holds.

    Raises:
        OSError: it failed, or the connection ended too early.
    """
    start = _length(part)
    if start == size:
        return
    ranges = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(source, headers={"User-Agent": "vptsp-core", **ranges})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there are no bytes beyond those that are here
            return
        raise
    with response:
        if (response.headers.get("Content-Type") or "").startswith("text/html"):
            raise OSError("sends a web page instead of the file")
        if response.status != 206:  # the whole file, from its start
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else size
        if size is not None and total != size:
            raise OSError(f"offers {total} bytes instead of {size}")
        shown = bar(title=part.stem, initial=start, total=total, unit="B", unit_scale=True, show=True)
        with shown, open(part, "ab" if start else "wb") as file:
            while chunk := response.read1(CHUNK):  # read would lose what came before a reset
                file.write(chunk)
                shown.update(len(chunk))
    if total is not None and _length(part) != total:
        raise OSError(f"the connection ended after {_length(part)} bytes")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
