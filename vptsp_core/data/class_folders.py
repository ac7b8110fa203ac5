"""Folders of images, one a class."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from vptsp_core.data import OWN
from vptsp_core.data.folder import IMAGE_SUFFIXES, not_read
from vptsp_core.errors import DataError


def class_folders(folder: Path, name: str) -> tuple[dict[str, list[str]], list[str]]:
    """Names of the image files of each sub-folder, both in name order, and the paths of what is ignored.

    Hidden files and folders, and a file system's ``lost+found``, are left out of both. Ignored are files without a
    suffix of `IMAGE_SUFFIXES`, folders in class folders, and files in the folder itself.

    Raises:
        DataError: a folder is missing or unreadable, or there are no sub-folders with images.
    """
    if not folder.is_dir():
        what = f"{folder} is no folder" if folder.exists() else f"no folder {folder}"
        mend = "unpack the data set there, or name its parent with --data"
        raise DataError(f"{name}: {what}; {'name the one that holds your images' if name in OWN else mend}")
    labels, loose = _entries(folder, lambda entry: entry.is_dir() and entry.name != "lost+found")
    classes, ignored = {}, [file for file in loose if file != "lost+found"]
    for label in labels:
        classes[label], others = _entries(folder / label, _is_image)
        ignored += [f"{label}/{other}" for other in others]
    if not any(classes.values()):
        raise DataError(f"{name}: {_no_classes(folder, name, labels, ignored)}")
    return classes, ignored


def _no_classes(folder: Path, name: str, labels: list[str], ignored: list[str]) -> str:
    nowhere = f"no class folders with images in {folder}"
    deeper = [label for label in labels if name in OWN and _holds_classes(folder / label)]
    if deeper:
        listed = " and ".join(str(folder / label) for label in deeper[:2])
        more = f" and {len(deeper) - 2} more" if len(deeper) > 2 else ""
        return f"{nowhere}, but in {listed}{more}; name the folder that holds the classes, or write split.csv"
    if count := sum(file.lower().endswith(IMAGE_SUFFIXES) for file in ignored if "/" not in file):
        return (
            f"{count} image(s) lie in {folder} itself, and no class folders with images; make a sub-folder for each "
            "class, or write split.csv"
        )
    return f"{nowhere}; it must hold <class>/<image>.jpg{'; ' * bool(others := not_read(ignored))}{others}"


def _holds_classes(folder: Path) -> bool:
    labels, _ = _entries(folder, lambda entry: entry.is_dir())
    return any(_entries(folder / label, _is_image)[0] for label in labels)


def lost_below(folder: Path, ignored: Sequence[str]) -> str:
    """What of the ``ignored`` are images: those in sub-folders of class folders, at any depth, and those of kinds that
    are not read; for the end of a message, empty where there are none.
    """
    count, others = 0, [*ignored]
    for inside in ignored:
        for _, folders, files in os.walk(folder / inside) if "/" in inside else ():
            folders[:] = [name for name in folders if not name.startswith(".")]
            files = [file for file in files if not file.startswith(".")]
            count += sum(file.lower().endswith(IMAGE_SUFFIXES) for file in files)
            others += files
    told = [f"; {count:,} image(s) in sub-folders of class folders are not used"] if count else []
    return "".join([*told, *(f"; {each}" for each in [not_read(others)] if each)])


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()


def _entries(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> tuple[list[str], list[str]]:
    """Names that are wanted and that are not, both in order; hidden ones are in neither."""
    names: tuple[list[str], list[str]] = ([], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    names[not wanted(entry)].append(entry.name)
    except OSError as error:
        place = error.filename or folder
        raise DataError(f"cannot read {place} ({error.strerror or error}); mend or remove it") from error
    return sorted(names[0]), sorted(names[1])
