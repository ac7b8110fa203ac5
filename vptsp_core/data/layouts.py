"""The layouts of the published data sets: each reader returns the images that should be in a folder, by split."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vptsp_core.data.base import OWN
from vptsp_core.data.folder import IMAGE_SUFFIXES, count_unread
from vptsp_core.errors import DataError

Rows = list[tuple[str, str]]  # (path with /, class)


@dataclass(frozen=True)
class Listing:
    """The images that a data set should hold. Nobody has looked for the files yet."""

    source: Path  # the list or folder that names the images, for messages
    root: Path  # the paths are relative to it
    splits: dict[str, Rows]  # train, and test or query and gallery
    uncertain: bool = False  # the split depends on the order of the classes, so nothing may be missing
    as_shown: bool = False  # read the images as a viewer shows them (`folder.read_image`)
    lines: dict[str, list[int]] = field(default_factory=dict)  # per path, the lines of split.csv that name it

    def where(self, *paths: str) -> str:
        """Return the lines that name these paths, for a message: " (line 2, 5)", or "" without a table."""
        numbers = sorted({number for path in paths for number in self.lines.get(path, ())})
        return f" (line {', '.join(map(str, numbers))})" if numbers else ""


Reader = Callable[[Path, str], Listing]  # (the data set's folder, the name that messages begin with)


def list_birds(folder: Path, name: str) -> Listing:
    """List CUB-200-2011: its first 100 classes are for training. See `split_by_class`."""
    return split_by_class(folder, name, 100)


def list_online_products(folder: Path, name: str) -> Listing:
    """List SOP: ``Info_Files/Ebay_{train,test}.txt`` and ``images/``, or all directly in the folder, as in the archive.
    Raises DataError: a list is missing or has another format; the message names file and line.
    """
    splits = {}
    inside = "images/" if (folder / "images").is_dir() else ""
    for split in ("train", "test"):
        path = _find(folder, name, f"Info_Files/Ebay_{split}.txt", f"Ebay_{split}.txt")
        rows = _read_table(path, name, "image_id class_id super_class_id path")
        splits[split] = [(inside + image, label) for _, (_, label, _, image) in rows]
    return Listing(path.parent, folder, splits)


def list_inshop(folder: Path, name: str) -> Listing:
    """List In-Shop: ``list_eval_partition.txt`` (number of rows, header, rows) and ``img/``.
    Raises DataError: the list is missing or has another format; the message names file and line.
    """
    path = _find(folder, name, "list_eval_partition.txt", "Eval/list_eval_partition.txt")
    folder = folder / "Img" if (folder / "Img" / "img").is_dir() else folder  # as published
    splits: dict[str, Rows] = {"train": [], "query": [], "gallery": []}
    for number, (image, item, status) in _read_table(path, name, "image_name item_id evaluation_status"):
        if status not in splits:
            raise DataError(f"{name}: {path}, line {number}: status {status!r} must be one of {', '.join(splits)}")
        splits[status].append((image, item))
    return Listing(path, folder, splits)


def list_inaturalist(folder: Path, name: str) -> Listing:
    """List iNaturalist 2018: ``train_val2018/<kind>/<species>/<image>``; the lists may have another prefix.
    Raises DataError: a list is missing or has another format; the message names file and line.
    """
    splits = {}
    for split in ("train", "test"):
        path = _find(folder, name, f"Inaturalist_{split}_set1.txt")
        rows = []
        for number, line in _read_lines(path, name):
            parts = line.split("/")
            if len(parts) < 3:
                raise DataError(f"{name}: {path}, line {number}: {line!r} must be kind/species/image; get it again")
            kind, species, image = parts[-3:]
            rows.append((f"train_val2018/{kind}/{species}/{image}", f"{kind}/{species}"))
        splits[split] = rows
    return Listing(path.parent, folder, splits)


def _find(folder: Path, name: str, *places: str) -> Path:
    """Return the first of ``places`` in ``folder`` that is a file."""
    if not folder.is_dir():
        raise DataError(f"{name}: no folder {folder}; {_how_to_get(name)}")
    for place in places:
        if (folder / place).is_file():
            return folder / place
    raise DataError(f"{name}: no {' or '.join(places)} in {folder}; {_how_to_get(name)}")


def _how_to_get(name: str) -> str:
    command = f"python -m vptsp_core data get {name} --data DIR"
    return f"{command} gets the data set, or says how; if you have it, name its parent with --data"


def _read_lines(path: Path, name: str) -> list[tuple[int, str]]:
    """Return number and text of each line that is not empty."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: {path} is unreadable ({error}); get it again") from error
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _read_table(path: Path, name: str, header: str) -> list[tuple[int, list[str]]]:
    """Return line number and fields of each row after the ``header``, which is one of the first two lines."""
    rows = [(number, line.split()) for number, line in _read_lines(path, name)]
    columns = header.split()
    begin = next((place for place, (_, fields) in enumerate(rows[:2], 1) if fields == columns), 0)
    if not begin:
        raise DataError(f"{name}: {path} must begin with the header {header!r}; get it again")
    for number, fields in rows[begin:]:
        if len(fields) != len(columns):
            fault = f"{len(fields)} fields instead of {len(columns)}"
            raise DataError(f"{name}: {path}, line {number}: {fault}; get the list again")
    return rows[begin:]


# ---- class folders ------------------------------------------------------------------------------------


def split_by_class(folder: Path, name: str, train_classes: int) -> Listing:
    """List ``images/<class>/<image>``: the first ``train_classes`` classes for training, the others for testing.

    If most names begin with a number, as ``001.Black_footed_Albatross``, the numbers decide: a missing class then moves
    no other class, and a folder without a number is left out. Otherwise the order of the names decides, and nothing
    may be missing.
    """
    folder = folder / "images"
    listed = {label: [(f"{label}/{file}", label) for file in files]
              for label, files in class_folders(folder, name)[0].items()}  # fmt: skip
    numbers = {label: int(label[:3]) for label in listed if re.match(r"[0-9]{3}(?!\d)", label)}
    if len(numbers) <= len(listed) / 2:
        ordered = list(listed.values())
        splits = {"train": sum(ordered[:train_classes], []), "test": sum(ordered[train_classes:], [])}
        return Listing(folder, folder, splits, uncertain=True)
    splits = {"train": [], "test": []}
    for label, number in numbers.items():
        splits["train" if number <= train_classes else "test"] += listed[label]
    return Listing(folder, folder, splits)


def class_folders(folder: Path, name: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return the names of the image files per sub-folder, in name order, and the paths of everything else.

    The second list holds other files, folders in class folders, and files in ``folder`` itself. Hidden names and
    ``lost+found`` are skipped.
    Raises DataError: the folder is missing, or no sub-folder holds images. Raises OSError: a folder is unreadable.
    """
    if not folder.is_dir():
        fault = f"{folder} is not a folder" if folder.exists() else f"no folder {folder}"
        cure = "name the folder that holds your images" if name in OWN else _how_to_get(name)
        raise DataError(f"{name}: {fault}; {cure}")
    labels, ignored = _list_entries(folder, os.DirEntry.is_dir)
    classes = {}
    for label in labels:
        classes[label], others = _list_entries(folder / label, _is_image)
        ignored += [f"{label}/{other}" for other in others]
    if not any(classes.values()):
        raise DataError(f"{name}: {_explain_no_classes(folder, name, labels, ignored)}")
    return classes, ignored


def _explain_no_classes(folder: Path, name: str, labels: list[str], ignored: list[str]) -> str:
    nowhere = f"no class folders with images in {folder}"
    deeper = [label for label in labels if name in OWN and _holds_classes(folder / label)]
    if deeper:
        listed = " and ".join(str(folder / label) for label in deeper[:2])
        more = f" and {len(deeper) - 2} more" if len(deeper) > 2 else ""
        return f"{nowhere}, but in {listed}{more}; name the folder that holds the classes, or write split.csv"
    if count := sum(file.lower().endswith(IMAGE_SUFFIXES) for file in ignored if "/" not in file):
        return (
            f"{count} image(s) are in {folder} itself, and no class folders with images; make a sub-folder for each "
            "class, or write split.csv"
        )
    others = count_unread(ignored)
    return "; ".join(filter(None, [nowhere, "it must hold <class>/<image>.jpg", others]))


def _holds_classes(folder: Path) -> bool:
    labels, _ = _list_entries(folder, os.DirEntry.is_dir)
    return any(_list_entries(folder / label, _is_image)[0] for label in labels)


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()


def _list_entries(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> tuple[list[str], list[str]]:
    """Return the names that are wanted and the other names, both sorted. Hidden names and ``lost+found`` are in neither
    list.
    """
    names: tuple[list[str], list[str]] = ([], [])
    with os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.name.startswith(".") or entry.name == "lost+found"):
                names[not wanted(entry)].append(entry.name)
    return sorted(names[0]), sorted(names[1])


def fold(name: str) -> str:
    """Return a form that is equal for names that differ only in case or in how accents are stored."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
