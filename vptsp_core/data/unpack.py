"""Archives into folders: nothing leaves the target, nothing half-unpacked stays."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from vptsp_core.data.partfile import amount
from vptsp_core.errors import DataError
from vptsp_core.system.bars import bar

Renaming = Callable[[str], str | None]  # path in the archive -> path in the target, or None: not needed
Member = tuple[str, int, Callable[[], IO[bytes]]]  # name, bytes, how to open it
FULL = (errno.ENOSPC, errno.EDQUOT)
HEADER = 1 << 20  # bytes: names and attributes of one member of a tar; more is meant to fill the memory
BROKEN = (  # what the readers raise for broken archives, documented or not
    zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, struct.error, RuntimeError, ValueError,
    ArithmeticError, LookupError, MemoryError,
)  # fmt: skip


def prefixes(moves: Mapping[str, str]) -> Renaming:
    """The renaming that replaces the first start that fits; what fits none is left out.

    >>> prefixes({"CUB/images/": "images/"})("CUB/images/a/b.jpg")
    'images/a/b.jpg'
    """

    def rename(path: str) -> str | None:
        return next((new + path[len(old) :] for old, new in moves.items() if path.startswith(old)), None)

    return rename


def unpack(archive: Path, target: Path, rename: Renaming, progress: bool = False) -> None:
    """Unpack a .zip, .tar, .tar.gz or .tgz into ``target``: first beside it, then renamed into place.

    Every member is judged before it is written, whether it is needed or not: an absolute path, ``..``, a link or
    a device is refused by name, and so is an archive that declares more bytes than the disk has. Owners,
    permissions and times of the archive are not taken over.

    Args:
        rename: where each file goes in ``target``; see `prefixes`.

    Raises:
        DataError: in one line; then ``target`` is as it was.
    """
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".unpacking", dir=target.parent))
        fresh = temporary / target.name  # mkdtemp's own folder is closed to others
        fresh.mkdir()
        _write(archive, fresh, target, rename, progress)
        _into_place(fresh, target)
    except BROKEN as error:
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise DataError(f"{archive}: broken or unreadable ({reason}); delete it and get it again") from error
    except OSError as error:
        if error.errno in FULL:
            raise DataError(f"{target.parent}: the disk is full, {archive.name} was not unpacked; free some") from error
        raise DataError(f"cannot unpack {archive} into {target} ({error}); get it again, or mend the folder") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(archive: Path, fresh: Path, target: Path, rename: Renaming, progress: bool) -> None:
    free, declared, folders = shutil.disk_usage(fresh).free, 0, set()
    for name, size, opened in bar(_members(archive, free), archive.name, show=progress, unit="files"):
        path = rename(name)
        if path is None:
            continue
        _refuse_outside(archive, path)
        declared += size
        if declared > free:
            raise _too_large(archive, declared, free)
        top = path.split("/")[0]
        if (target / top).exists():
            raise DataError(f"{target / top} is there already; move it away, then unpack {archive.name} again")
        place = os.path.join(fresh, path)
        folder = os.path.dirname(place)
        try:
            if folder not in folders:
                os.makedirs(folder, exist_ok=True)
                folders.add(folder)
            file = open(place, "xb")
        except (FileExistsError, NotADirectoryError) as error:
            raise DataError(
                f"{archive}: holds {path!r} twice or as file and folder, the archive is at fault; get another"
            ) from error
        with file, opened() as source:
            shutil.copyfileobj(source, file, 1 << 20)
    if not folders:
        raise DataError(f"{archive}: holds nothing of what was looked for; is it the right archive?")


def _into_place(fresh: Path, target: Path) -> None:
    if not target.exists():
        fresh.rename(target)
        return
    for entry in sorted(fresh.iterdir()):
        entry.rename(target / entry.name)


def _members(archive: Path, free: int) -> Iterator[Member]:
    if zipfile.is_zipfile(archive):
        return _zip_members(archive, free)
    return _tar_members(archive)


def _zip_members(archive: Path, free: int) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as content:
        members = content.infolist()
        for member in members:
            _refuse_outside(archive, member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{archive}: {member.filename!r} is a link or a device, not a file; do not trust it")
            if member.flag_bits & 1:
                raise DataError(f"{archive}: needs a password; unpack it yourself, see python -m vptsp_core data info")
        if (declared := sum(member.file_size for member in members)) > free:
            raise _too_large(archive, declared, free)
        for member in members:
            if not member.is_dir():
                yield member.filename, member.file_size, lambda member=member: content.open(member)  # type: ignore[misc]


class _TarInfo(tarfile.TarInfo):
    """A member whose extended header is bounded: tarfile reads it into memory as long as it says it is."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size > HEADER and self.type in b"xgXLK" and self.type:
            raise tarfile.ReadError(f"a header of {amount(self.size)}")
        return super()._proc_member(archive)  # type: ignore[misc]


def _tar_members(archive: Path) -> Iterator[Member]:
    """One pass: listing 120 GB of .tar.gz first would take as long as unpacking it."""
    with tarfile.open(archive, tarinfo=_TarInfo) as content:
        while (member := content.next()) is not None:
            content.members.clear()  # type: ignore[attr-defined]  # else half a gigabyte of them for 450,000 files
            _refuse_outside(archive, member.name)
            if member.isdir():
                continue
            if not member.isreg():
                raise DataError(f"{archive}: {member.name!r} is a link or a device, not a file; do not trust it")
            yield member.name.removeprefix("./"), member.size, lambda member=member: content.extractfile(member)  # type: ignore
        while content.fileobj is not None and content.fileobj.read(1 << 20):
            pass  # gzip compares its checksum at the very end, behind the last member


def _refuse_outside(archive: Path, name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or parts[0].endswith(":") or "\0" in name:
        raise DataError(f"{archive}: {name!r} would be written outside of the folder; do not trust this archive")


def _too_large(archive: Path, declared: int, free: int) -> DataError:
    return DataError(
        f"{archive}: declares {amount(declared)}, the disk has {amount(free)} free; free some, or --data elsewhere"
    )
