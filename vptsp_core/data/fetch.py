"""A data set into its folder: what is missing is downloaded or taken from DIR/downloads, verified and unpacked."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vptsp_core.data import load_benchmark
from vptsp_core.data.assemble import MEND
from vptsp_core.data.catalog import DataSet, Part
from vptsp_core.data.download import download
from vptsp_core.data.partfile import mismatch
from vptsp_core.data.unpack import unpack
from vptsp_core.errors import DataError
from vptsp_core.system.files import temporary_name
from vptsp_core.system.locks import locked


def get(known: DataSet, data: Path) -> None:
    """Have the whole data set under ``data``; does nothing where it is there, goes on where it was cut short.

    Of two processes that get the same data set, one works and the other waits.

    Raises:
        DataError: a source, the disk or an archive failed; a file has to be fetched by hand (the steps are printed
            first); or what is there is not the published data set.
    """
    try:
        load_benchmark(known.name, data)
    except DataError:
        pass
    else:
        print(f"{known.name}: already there and whole, in {data / known.folder}")
        return
    downloads, folder = data / "downloads", data / known.folder
    absent = [part for part in _needed(known, folder) if not part.sources and not (downloads / part.file).is_file()]
    if absent:
        print("\n".join(steps(known, data)))
        raise DataError(
            f"{known.name}: {' and '.join(part.file for part in absent)} must be fetched by hand, as said above, "
            f"and put into {downloads}"
        )
    with _alone(known, downloads):
        for stale in data.glob(f".{known.folder}.*.unpacking"):  # of a process that was killed
            shutil.rmtree(stale, ignore_errors=True)
        needed = _needed(known, folder)
        if needed:
            print(f"{known.title}: {known.terms}\n{known.home}")
        for part in needed:
            _place(part, downloads, folder)
    try:
        load_benchmark(known.name, data)
    except DataError as error:
        raise DataError(
            f"{str(error).removesuffix(MEND)}; to start over, move {folder} away and run this again"
        ) from error
    print(f"{known.name}: whole, in {folder}; {downloads} is not needed any more")


def _needed(known: DataSet, folder: Path) -> list[Part]:
    return [part for part in known.parts if not all((folder / made).exists() for made in part.makes)]


@contextlib.contextmanager
def _alone(known: DataSet, downloads: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            downloads.mkdir(parents=True, exist_ok=True)
            lock = downloads / f"{known.name}.lock"
            stack.enter_context(locked(lock, f"{known.name}: another process is getting it; waiting"))
        except OSError as error:
            raise DataError(f"cannot write {downloads} ({error.strerror or error}); mend the folder") from error
        yield


def _place(part: Part, downloads: Path, folder: Path) -> None:
    """One part into the data set's folder. What a killed call put there was whole, and stays."""
    archive = _fetched(part, downloads)
    print(f"{archive} -> {folder}")
    if part.renaming is None:
        _copy(archive, folder / part.file)
        return
    rename, there = part.renaming(downloads), {made for made in part.makes if (folder / made).exists()}

    def missing(path: str) -> str | None:
        renamed = rename(path)
        return None if renamed is None or renamed.split("/")[0] in there else renamed

    try:
        unpack(archive, folder, missing, progress=True)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"stopped; the same command unpacks {archive.name} again") from error


def steps(known: DataSet, data: Path) -> list[str]:
    """What a person has to do, and what will be checked then."""
    lines = [f"{known.title}: how to get it", f"  home page: {known.home}", f"  terms: {known.terms}"]
    command = f"python -m vptsp_core data get {known.name} --data {data}"
    places = {"downloads": data / "downloads", "folder": data / known.folder, "get": command}
    lines += [f"  {number}. {step.format(**places)}" for number, step in enumerate(known.steps, 1)]
    counts = ", ".join(f"{split} {images:,} images of {classes:,} classes"
                       for split, (classes, images) in known.counts.items())  # fmt: skip
    return [*lines, f"  checked then (python -m vptsp_core data check {known.name} --data {data}): {counts}"]


def _fetched(part: Part, downloads: Path) -> Path:
    path = downloads / part.file
    if part.sources:
        return download(part.sources, path, part.size, part.checksum)
    if wrong := mismatch(path, part.size, part.checksum):
        raise DataError(f"{path} is not the published file ({wrong}); get it again")
    return path


def _copy(source: Path, target: Path) -> None:
    temporary = temporary_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise DataError(f"cannot write {target} ({error.strerror or error}); mend the folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
