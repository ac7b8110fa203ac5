"""The published data sets on disk: each reader turns a folder into a listing of what should be there, by split."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vptsp_core.data.folder import IMAGE_SUFFIXES, not_read
from vptsp_core.errors import DataError

COLUMNS = ("path", "class", "split")


@dataclass(frozen=True)
class Listing:
    """The images that a data set names, not yet looked for.

    Attributes:
        source: the file or folder that names them, for messages.
        root: the folder that the paths are relative to.
        images: a row an image, in order, with the `COLUMNS`: its path with ``/``, its class, and its split: train, and
            test or query and gallery.
        ordered: the classes' places in the order of names decide the split, so that no class may be missing.
        as_shown: images are read as a viewer shows them (`folder.read_image`).
    """

    source: Path
    root: Path
    images: pd.DataFrame
    ordered: bool = False
    as_shown: bool = False


Reader = Callable[[Path, str], Listing]  # (the data set's folder, the name that messages begin with)


def listed(rows: Iterable[tuple[str, str, str]]) -> pd.DataFrame:
    """`Listing.images` of (path, class, split) rows. Names of files may hold bytes that are no text: object columns."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS), dtype=object)


def online_products(folder: Path, name: str) -> Listing:
    """SOP: ``Info_Files/Ebay_{train,test}.txt`` and ``images/``; or all in the folder itself, as in its archive.

    Raises:
        DataError: a list is missing or is not as described.
    """
    inside = "images/" if (folder / "images").is_dir() else ""
    parts = []
    for split in ("train", "test"):
        path = _find(folder, name, f"Info_Files/Ebay_{split}.txt", f"Ebay_{split}.txt")
        part = _read_list(path, name, ["class_id", "path"]).rename(columns={"class_id": "class"})
        parts.append(part.assign(path=inside + part["path"], split=split))
    return Listing(path.parent, folder, pd.concat(parts, ignore_index=True))


def inshop(folder: Path, name: str) -> Listing:
    """In-Shop: ``list_eval_partition.txt`` (number of rows, header, rows) and ``img/``; queries have a gallery.

    Raises:
        DataError: the list is missing or is not as described.
    """
    path = _find(folder, name, "list_eval_partition.txt", "Eval/list_eval_partition.txt")
    images = _read_list(path, name, ["image_name", "item_id", "evaluation_status"], skiprows=1)
    images.columns = pd.Index(COLUMNS)
    if unknown := set(images["split"]) - {"train", "query", "gallery"}:
        raise DataError(f"{name}: {path}: unknown evaluation_status {min(unknown)!r}; get it again")
    return Listing(path, folder / "Img" if (folder / "Img" / "img").is_dir() else folder, images)


def inaturalist(folder: Path, name: str) -> Listing:
    """iNaturalist 2018: lists of ``train_val2018/<kind>/<species>/<image>``, whatever stands before that.

    Raises:
        DataError: a list is missing or is not as described.
    """
    parts = []
    for split in ("train", "test"):
        path = _find(folder, name, f"Inaturalist_{split}_set1.txt")
        lines = _read_list(path, name, ["path"], header=None, names=["path"])["path"]
        part = lines.str.extract(r"(?P<path>(?P<class>[^/]+/[^/]+)/[^/]+)$")
        if part.isna().any(axis=None):
            fault = lines[part["path"].isna()].iloc[0]
            raise DataError(f"{name}: {path}: {fault!r} is not a path kind/species/image; get it again")
        parts.append(part.assign(path="train_val2018/" + part["path"], split=split))
    return Listing(path.parent, folder, pd.concat(parts, ignore_index=True))


def _find(folder: Path, name: str, *places: str) -> Path:
    for place in places:
        if (folder / place).is_file():
            return folder / place
    what = f"no {' or '.join(places)} in {folder}" if folder.is_dir() else f"no folder {folder}"
    raise DataError(f"{name}: {what}; python -m vptsp_core data get {name} gets it, or name its parent with --data")


def _read_list(path: Path, name: str, columns: list[str], **options: Any) -> pd.DataFrame:
    """These columns of a list whose values are separated by spaces, as text."""
    try:
        found = pd.read_csv(path, sep=r"\s+", dtype=object, encoding="utf-8-sig", usecols=columns, **options)[columns]
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: {path}: unreadable ({' '.join(str(error).split())}); get it again") from error
    if found.isna().any(axis=None):
        raise DataError(f"{name}: {path}: a line lacks {' or '.join(columns)}; get it again")
    return found


# ---- class folders ------------------------------------------------------------------------------------


def class_split(folder: Path, name: str, train_classes: int) -> Listing:
    """``images/<class>/<image>``: the classes up to ``train_classes`` are for training, the others for testing.

    If all names begin with their class's number (``001.Black_footed_Albatross``), it decides: a class that is missing
    moves no other. Otherwise the order of the names decides, in a whole set only.
    """
    folder = folder / "images"
    classes = class_folders(folder, name)[0]
    numbered = all(re.match(r"[0-9]{3}(?!\d)", label) for label in classes)
    rows = []
    for place, (label, files) in enumerate(classes.items(), 1):
        split = "train" if (int(label[:3]) if numbered else place) <= train_classes else "test"
        rows += [(f"{label}/{file}", label, split) for file in files]
    return Listing(folder, folder, listed(rows), ordered=not numbered)


def class_folders(folder: Path, name: str) -> tuple[dict[str, list[str]], list[str]]:
    """Names of the image files of each sub-folder, both in name order, and the paths of what is ignored.

    Hidden files and folders, and a file system's ``lost+found``, are left out of both. Ignored are files without a
    suffix of `IMAGE_SUFFIXES`, folders in class folders, and files in the folder itself.

    Raises:
        DataError: a folder is missing or unreadable, or there are no sub-folders with images.
    """
    if not folder.is_dir():
        raise DataError(f"{name}: no folder {folder}; name the one that holds your images, or the data set's parent")
    labels, ignored = _entries(folder, os.DirEntry.is_dir)
    classes = {}
    for label in labels:
        classes[label], others = _entries(folder / label, _is_image)
        ignored += [f"{label}/{other}" for other in others]
    if not any(classes.values()):
        raise DataError(
            f"{name}: no class folders with images, <class>/<image>.jpg, in {folder}{not_read(ignored)}; name the "
            "folder that holds the classes, or write split.csv"
        )
    return classes, ignored


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()


def _entries(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> tuple[list[str], list[str]]:
    """Names that are wanted and that are not, both in order; hidden ones and ``lost+found`` are in neither."""
    names: tuple[list[str], list[str]] = ([], [])
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name != "lost+found":
                names[not wanted(entry)].append(entry.name)
    return sorted(names[0]), sorted(names[1])
