"""Get a data set: download its files or take them from DIR/downloads, verify them, and unpack them into its folder."""

from __future__ import annotations

import shlex
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from vptsp_core.data import find_folder, load_benchmark
from vptsp_core.data.catalog import DataSet, Part
from vptsp_core.data.download import download
from vptsp_core.errors import DataError
from vptsp_core.system.bars import bar
from vptsp_core.system.files import FULL, write_bytes
from vptsp_core.system.locks import locked
from vptsp_core.system.portable import replace


def get(known: DataSet, data: Path) -> None:
    """Get the missing parts of a data set under ``data``, and resume an interrupted download.
    Raises DataError: a source, the disk or an archive failed; a person must fetch a file (the steps are printed first);
    or the result is not the published data set.
    """
    downloads, folder = data / "downloads", data / known.folder
    try:
        load_benchmark(known.name, data)
        print(f"{known.name}: already complete, in {find_folder(data, known)}")
        return
    except DataError as error:
        if find_folder(data, known).is_dir():
            print(error.fault)
    by_hand = [part for part in _find_missing_parts(known, folder) if not part.sources]
    absent = [part.file for part in by_hand if not (downloads / part.file).is_file()]
    if absent:
        print("\n".join(list_steps(known, data)))
        raise DataError(
            f"{known.name}: {' and '.join(absent)} must be fetched by hand, as described "
            f"above, and put into {downloads}"
        )
    with locked(downloads / f"{known.name}.lock", f"{known.name}: another process is getting it; waiting"):
        for stale in folder.glob(".*.unpacking"):  # from a process that was killed
            shutil.rmtree(stale, ignore_errors=True)
        missing = _find_missing_parts(known, folder)
        if missing:
            print(f"{known.title}: {known.terms}\n{known.home}")
        for part in missing:
            archive = download(part.sources, downloads / part.file, part.checksum)
            print(f"{archive} -> {folder}")
            folder.mkdir(parents=True, exist_ok=True)
            if part.makes == part.file:
                write_bytes(folder / part.file, archive.read_bytes())
            else:
                _unpack(archive, folder, part.makes)
    try:
        load_benchmark(known.name, data)
    except DataError as error:
        raise DataError(error.fault, f"to start over, move {folder} away and run this again") from error
    print(f"{known.name}: complete, in {folder}; {downloads} is no longer needed")


def list_steps(known: DataSet, data: Path) -> list[str]:
    """Return the instructions for a person, one line each, and the counts that are checked afterwards."""
    lines = [f"{known.title}: how to get it", f"  home page: {known.home}", f"  terms: {known.terms}"]
    command = f"python -m vptsp_core data get {known.name} --data {shlex.quote(str(data))}"
    places = {"downloads": data / "downloads", "folder": data / known.folder, "get": command}
    lines += [f"  {number}. {step.format(**places)}" for number, step in enumerate(known.steps, 1)]
    counts = ", ".join(f"{split} {images:,} images of {classes:,} classes"
                       for split, (classes, images) in known.counts.items())  # fmt: skip
    return [*lines, f"  checked then ({command.replace(' get ', ' check ', 1)}): {counts}"]


def _find_missing_parts(known: DataSet, folder: Path) -> list[Part]:
    return [part for part in known.parts if not (folder / part.makes).exists()]


def _unpack(archive: Path, folder: Path, makes: str) -> None:
    """Move ``makes``, a folder in the archive, into ``folder``; it is whole or absent.
    Raises DataError: the disk is full, or the archive is broken or does not hold the folder.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".", suffix=".unpacking", dir=folder) as temporary:
            _extract(archive, temporary)
            if not (made := Path(temporary, makes)).is_dir():
                raise DataError(f"{archive}: has no folder {makes}; get the right archive")
            replace(made, folder / makes)
    except DataError:
        raise
    except Exception as error:  # tarfile and zipfile also raise EOFError, zlib.error, struct.error, ...
        if isinstance(error, OSError) and error.errno in FULL:
            raise DataError(f"{folder}: the disk is too full to unpack {archive.name}; free some space") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{archive}: cannot be unpacked ({reason}); get it again, or unpack it yourself") from error


def _extract(archive: Path, folder: str) -> None:
    """Extract a .zip, .tar or .tar.gz. The standard library writes no file outside of ``folder``."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for entry in bar(zipped.infolist(), archive.name, show=True, unit="files"):
                zipped.extract(entry, folder)
        return
    with tarfile.open(archive) as tarred:
        for member in bar(tarred, archive.name, show=True, unit="files"):
            tarred.extract(member, folder, filter="data")
            tarred.members = []  # type: ignore[attr-defined]  # a list of 450,000 would take half a gigabyte
