"""Files from the network: resumed, verified, and in place only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import http.client
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vptsp_core.data.partfile import PartFile, mismatch
from vptsp_core.errors import DataError

TRIES = 4  # at one source, in a row, without GAIN bytes more
GAIN = 1 << 20
PAUSE = 1.0  # seconds before the second try; doubled each time
TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 18
FULL = (errno.ENOSPC, errno.EDQUOT)


class _SourceFailed(Exception):
    """This source will not give the file; the next one may."""


def download(sources: Sequence[str], target: Path, size: int | None = None, checksum: str | None = None) -> Path:
    """Have the file at ``target``: nothing is done where it lies there already and is the right one.

    Until it is verified it is ``<target>.part``, which a later call goes on with (HTTP Range, If-Range).

    Args:
        sources: http, https or ftp addresses of the same file; the next one is tried where one fails.
        size: bytes, as published; None: not checked.
        checksum: ``"md5:..."`` or ``"sha256:..."``; None: not checked.

    Raises:
        DataError: no source gave the file (why, for each), the disk is full, or another file is in its place.
    """
    part, reasons = PartFile(target), []
    with _on_disk(target):
        if target.exists():
            if wrong := mismatch(target, size, checksum):
                raise DataError(f"{target} is not the published file ({wrong}); delete it, or put the right one there")
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        for source in sources:
            try:
                _from_source(source, part, size, checksum)
            except _SourceFailed as failure:
                reasons.append(f"{source}: {failure}")
                print(f"{target.name}: {reasons[-1]}", file=sys.stderr)
            else:
                part.finish()
                return target
    raise DataError(f"{target.name}: no source gave it ({'; '.join(reasons)}); try again, or put it at {target}")


@contextlib.contextmanager
def _on_disk(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DataError(f"{target}: the disk is full; free some, the same command goes on where it was") from error
        raise DataError(f"cannot write {target} ({error.strerror or error}); choose another folder") from error


def _from_source(source: str, part: PartFile, size: int | None, checksum: str | None) -> None:
    """The whole, verified file as ``part``. Bytes left by an earlier call may be wrong: then once more from none."""
    while True:
        resumed = part.length > 0
        _complete(source, part, size, checksum)
        wrong = mismatch(part.path, size, checksum)
        if not wrong:
            return
        part.discard()
        if not resumed:
            raise _SourceFailed(wrong)
        print(f"{part.target.name}: {wrong} after going on with a partial file; starting over", file=sys.stderr)


def _complete(source: str, part: PartFile, size: int | None, checksum: str | None) -> None:
    tries = 0
    while size is None or part.length != size:
        before = part.length
        if (size is not None and before > size) or (checksum is None and part.version(source) is None):
            part.discard()  # too long, or nothing would tell whether the rest belongs to it
        try:
            if _receive(source, part, size):
                return
            reason = f"the connection ended after {part.length} bytes"
        except (OSError, http.client.HTTPException) as error:
            reason = _retryable(error)
        tries = tries + 1 if part.length - before < GAIN else 1
        if tries >= TRIES:
            raise _SourceFailed(f"{reason}, {tries} times in a row")
        time.sleep(PAUSE * 2 ** (tries - 1))


def _retryable(error: Exception) -> str:
    """Why a try failed; `_SourceFailed` where another try would fail as well."""
    if isinstance(error, urllib.error.HTTPError):
        reason = f"HTTP {error.code} {error.reason}"
        if error.code < 500 and error.code not in (408, 429):
            raise _SourceFailed(reason) from error
        return reason
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror | ConnectionRefusedError | ssl.SSLCertVerificationError):
        raise _SourceFailed(str(cause)) from error
    return " ".join(str(cause).split()) or type(cause).__name__


def _receive(source: str, part: PartFile, size: int | None) -> bool:
    """One request, its bytes appended to ``part``; True where the file is complete by the server's own count."""
    offset, version = part.length, part.version(source)
    request = urllib.request.Request(source, headers={"User-Agent": "vptsp-core"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        if version:
            request.add_header("If-Range", version)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if _total(error.headers.get("Content-Range")) == offset:
            return True
        part.discard()  # longer than the server's file
        return False
    with response:
        if getattr(response, "status", None) == 206:
            start = (response.headers.get("Content-Range") or "").removeprefix("bytes ").partition("-")[0]
            total = _total(response.headers.get("Content-Range"))
            if start != str(offset):
                part.discard()
                return False
        else:
            length = response.headers.get("Content-Length")
            offset, total = 0, int(length) if length and length.isdecimal() else None
        if (response.headers.get("Content-Type") or "").startswith("text/html"):
            raise _SourceFailed("sends a web page instead of the file")
        if size is not None and total is not None and total != size:
            raise _SourceFailed(f"offers {total} bytes instead of {size}")
        expected = size if total is None else total
        with _on_disk(part.target):
            if not offset:
                part.begin(source, _version(response.headers))
            free = shutil.disk_usage(part.path.parent).free
        needed = (expected or 0) - offset
        if needed > free:
            raise DataError(
                f"{part.target}: {needed / 1e9:.2f} GB are still to come, the disk has {free / 1e9:.2f} GB free; free "
                "some, or --data elsewhere"
            )
        _append(response, part, expected)
    return expected is None or part.length == expected


def _append(response: Any, part: PartFile, total: int | None) -> None:
    bar = tqdm(desc=part.target.name, initial=part.length, total=total, unit="B", unit_scale=True,
               disable=not sys.stderr.isatty())  # fmt: skip
    with _on_disk(part.target):
        file = open(part.path, "ab", buffering=0)
    with bar, file:
        while chunk := response.read(CHUNK):
            with _on_disk(part.target):  # the disk's errors alone: the network's are tried again
                _write(file, chunk)
            bar.update(len(chunk))
            if total is not None and file.tell() > total:
                raise _SourceFailed(f"sends more than {total} bytes")


def _write(file: Any, chunk: bytes) -> None:
    """All of the chunk: an unbuffered file may take less, and keeps what it took when the disk is full."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _total(content_range: str | None) -> int | None:
    total = (content_range or "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None


def _version(headers: Any) -> str | None:
    """What If-Range takes: a strong ETag, else the date."""
    etag = headers.get("ETag") or ""
    return etag if etag.startswith('"') else headers.get("Last-Modified")
