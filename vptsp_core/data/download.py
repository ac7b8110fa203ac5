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

from vptsp_core.data.partfile import PartFile, amount, mismatch
from vptsp_core.errors import DataError
from vptsp_core.system.bars import bar
from vptsp_core.system.locks import locked

TRIES = 4  # at one source, in a row, without a byte more
PAUSE = 1.0  # seconds before the second try; doubled each time
TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 18
FULL = (errno.ENOSPC, errno.EDQUOT)


class _SourceFailed(Exception):
    """This source will not give the file; the next one may."""


class _OtherRange(Exception):
    """This source gives another range than it was asked for; it may give the whole file."""


def download(sources: Sequence[str], target: Path, size: int | None = None, checksum: str | None = None) -> Path:
    """Have the file at ``target``: nothing is done where it lies there already and is the right one.

    Until it is verified it is ``<target>.part``, which a later call goes on with (HTTP Range, If-Range). Where the
    checksum is known, a source that only gives the whole file writes over what is there from its start and never
    shortens it. Of two processes that want the same file, one fetches it and the other waits.

    Args:
        sources: http, https or ftp addresses of the same file; the next one is tried where one fails.
        size: bytes, as published; None: not checked.
        checksum: ``"md5:..."`` or ``"sha256:..."``; None: not checked.

    Raises:
        DataError: no source gave the file (why, for each), the disk is full, or another file is in its place.
    """
    part, reasons = PartFile(target), []
    with _on_disk(target):
        if _there(target, size, checksum):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(part.lock, f"{target.name}: another process is fetching it; waiting"):
            if _there(target, size, checksum):
                return target
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


def _there(target: Path, size: int | None, checksum: str | None) -> bool:
    if not target.exists():
        return False
    if wrong := mismatch(target, size, checksum):
        raise DataError(f"{target} is not the published file ({wrong}); delete it, or put the right one there")
    return True


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
    tries, most, ranges = 0, part.length, True
    while size is None or part.length != size:
        if (size is not None and part.length > size) or (checksum is None and part.version(source) is None):
            part.discard()  # too long, or nothing would tell whether the rest belongs to it
        try:
            if _receive(source, part, part.length if ranges else 0, size, checksum, last=tries == TRIES - 1):
                return
            reason = f"the connection ended after {part.length} bytes"
        except _OtherRange as error:
            ranges, reason = False, str(error)
        except (OSError, http.client.HTTPException) as error:
            reason = _retryable(error)
        tries = tries + 1 if part.length <= most else 1
        most = max(most, part.length)
        if tries >= TRIES:
            raise _SourceFailed(f"{reason}, {tries} times in a row")
        time.sleep(PAUSE * 2 ** (tries - 1))


def _retryable(error: Exception) -> str:
    """Why a try failed; `_SourceFailed` where another try would fail as well."""
    if isinstance(error, urllib.error.HTTPError):
        reason = " ".join(f"HTTP {error.code} {error.reason}".split())
        if error.code < 500 and error.code not in (408, 429):
            raise _SourceFailed(reason) from error
        return reason
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror | ConnectionRefusedError | ssl.SSLCertVerificationError):
        raise _SourceFailed(str(cause)) from error
    return " ".join(str(cause).split())[:200] or type(cause).__name__


def _receive(
    source: str, part: PartFile, offset: int, size: int | None, checksum: str | None, last: bool = False
) -> bool:
    """One request for the bytes from ``offset`` on, put into ``part``; True where the file is complete.

    It is by the server's count, else by the checksum, else where a whole answer ends at the same byte to the last.
    """
    before, response = part.length, _open(source, part, offset, size)
    if response is None:
        return part.length > 0
    with response:
        if (response.headers.get("Content-Type") or "").startswith("text/html"):
            raise _SourceFailed("sends a web page instead of the file")
        start, total = 0, _number(response.headers.get("Content-Length"))
        if getattr(response, "status", None) == 206:
            content_range = response.headers.get("Content-Range")
            first, total = (content_range or "").removeprefix("bytes ").partition("-")[0], _total(content_range)
            if _number(first) != offset:
                raise _OtherRange(f"sends {content_range or 'an unknown range'} instead of the bytes from {offset} on")
            start = offset
        if size is not None and total is not None and total != size:
            raise _SourceFailed(f"offers {total} bytes instead of {size}")
        expected = size if total is None else total
        with _on_disk(part.target):
            if not start:
                if checksum is None:
                    part.discard()  # nothing would tell whether both belong together
                part.begin(source, _version(response.headers))
            free = shutil.disk_usage(part.path.parent).free
        needed = (expected or 0) - part.length
        if needed > free:
            raise DataError(
                f"{part.target}: {amount(needed)} are still to come, the disk has {amount(free)} free; free some, or "
                "--data elsewhere"
            )
        end = _put(response, part, start, expected)
    if expected is not None:
        return end == expected
    return end > 0 and (not mismatch(part.path, size, checksum) or (last and start == 0 and end == before))


def _open(source: str, part: PartFile, offset: int, size: int | None) -> Any:
    """The response; None where the server has nothing beyond the offset: then ``part`` is complete, or discarded."""
    request = urllib.request.Request(source, headers={"User-Agent": "vptsp-core"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        if version := part.version(source):
            request.add_header("If-Range", version)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not offset:
            raise
        total = _total(error.headers.get("Content-Range"))
        if total is not None and size is not None and total != size:
            raise _SourceFailed(f"offers {total} bytes instead of {size}") from error
        if total is None or total > offset:
            raise _OtherRange(f"has no bytes from {offset} on") from error
        if total < offset:
            part.discard()
        return None
    except (ValueError, OverflowError) as error:  # what urllib raises for a host or a port that cannot be
        raise _SourceFailed(f"leads to an address that is none ({error})") from error


def _put(response: Any, part: PartFile, position: int, total: int | None) -> int:
    """The body into ``part`` from ``position`` on; where it ended. What lies behind stays, unless that is the end."""
    shown = bar(title=part.target.name, initial=position, total=total, unit="B", unit_scale=True, show=True)
    with _on_disk(part.target):
        file = open(part.path, "r+b" if part.path.exists() else "wb", buffering=0)
    with shown, file:
        file.seek(position)
        while chunk := response.read1(CHUNK):  # read would lose up to a chunk that came before a reset
            with _on_disk(part.target):  # the disk's errors alone: the network's are tried again
                _write(file, chunk)
            shown.update(len(chunk))
            position += len(chunk)
            if total is not None and position > total:
                part.discard()
                raise _SourceFailed(f"sends more than {total} bytes")
        if position == total:
            with _on_disk(part.target):
                file.truncate()
    return position


def _write(file: Any, chunk: bytes) -> None:
    """All of the chunk: an unbuffered file may take less, and keeps what it took when the disk is full."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _total(content_range: str | None) -> int | None:
    return _number((content_range or "").rpartition("/")[2])


def _number(text: str | None) -> int | None:
    """A count of bytes; None where there is none, or none that a file can have."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 19 else None


def _version(headers: Any) -> str | None:
    """What If-Range takes: a strong ETag, else the date."""
    etag = headers.get("ETag") or ""
    return etag if etag.startswith('"') else headers.get("Last-Modified")
