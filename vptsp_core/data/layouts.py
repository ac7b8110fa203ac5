"""How data sets lie on disk: each reader turns a folder into a listing of what should be there, by split."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vptsp_core.data.class_folders import class_folders, lost_below
from vptsp_core.data.split_csv import csv_rows
from vptsp_core.errors import DataError

Rows = list[tuple[str, str]]
VALIDATION = ("val", "valid", "validation")  # what others call a split that we make ourselves
LINE_ENDS = dict.fromkeys(
    map(ord, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), " "
)  # in names, where a message is one line


@dataclass(frozen=True)
class Listing:
    """The images that a data set names, not yet looked for.

    Attributes:
        source: what named them, for messages.
        root: the paths are relative to it.
        splits: ``train``, and ``test`` or ``query`` and ``gallery``; of each (path with ``/``, class) in order.
        notes: what the lists themselves lack.
        uncertain: the split rests on the order of the classes, so that nothing may be missing.
        classes_of_one: ``fine``, as in a benchmark's list, where they count as misses; ``told`` in a warning, or
            ``refused``, whatever else is waved through.
        as_shown: images are read as a viewer shows them (`folder.read_image`).
    """

    source: Path
    root: Path
    splits: dict[str, Rows]
    notes: list[str] = field(default_factory=list)
    uncertain: bool = False
    classes_of_one: str = "fine"
    as_shown: bool = False


Reader = Callable[[Path, str], Listing]  # (the data set's folder, the name that messages begin with)


def class_split(folder: Path, name: str, train_classes: int) -> Listing:
    """``images/<class>/<image>``: the classes up to ``train_classes`` are for training, the others for testing.

    Where most names begin with their class's number (``001.Black_footed_Albatross``), it decides: a class that is
    missing moves no other, and folders without a number are left out. Else their order does, of a whole set only.
    """
    found, _ = class_folders(folder / "images", name)
    numbers = {label: int(label[:3]) for label in found if re.match(r"[0-9]{3}(?!\d)", label)}
    if len(numbers) > len(found) / 2:
        train = [label for label, number in numbers.items() if number <= train_classes]
        listing = _classes(folder / "images", {label: found[label] for label in numbers}, train)
        if strays := [label for label in found if label not in numbers]:
            listing.notes.append(f"{len(strays)} folder(s) without a class number, the first {strays[0]}")
        return listing
    return _classes(folder / "images", found, list(found)[:train_classes], uncertain=True)


def birds(folder: Path, name: str) -> Listing:
    """CUB-200-2011, whose first 100 classes are for training (`class_split`).

    Raises:
        DataError: these are the images of 2010, which have the same classes.
    """
    files = [file for label in class_folders(folder / "images", name)[0].values() for file in label]
    flickr = sum(re.search(r"_[0-9]{7,}\.", file) is not None for file in files)  # numbers of 2011 are shorter
    if flickr > len(files) / 2 or (folder / "annotations-mat").is_dir() or (folder / "lists").is_dir():
        raise DataError(
            f"{name}: {folder} holds CUB-200 of 2010 (6,033 images); the benchmark is CUB-200-2011 (11,788 images), "
            f"which python -m vptsp_core data get {name} gets"
        )
    return class_split(folder, name, 100)


def own_images(folder: Path, name: str) -> Listing:
    """Anyone's images: by ``split.csv`` where there is one, else ``<class>/<image>``, half of the classes each.

    The first half of the classes in name order, rounded up, is for training; what is ignored is told in one warning.
    ``split.csv`` has the header ``path,class,split``; split is train, and test or else query and gallery, in any case.
    Classes of one image are refused in folders, where nothing says that they are meant, and told in a warning in
    ``split.csv``; so are, in both, classes that differ only in case.

    Raises:
        DataError: no classes, or a ``split.csv`` that is not as said, with file and line.
    """
    table = folder / "split.csv"
    if not table.is_file():
        classes, ignored = class_folders(folder, name)
        ignored += [f"{label}/ without images" for label, images in classes.items() if not images]
        if ignored:
            lost = lost_below(folder, ignored)
            warnings.warn(f"{name}: {len(ignored)} thing(s) in {folder} are ignored, being no images or folders of "
                          f"them, the first {ignored[0]}{lost}".translate(LINE_ENDS), stacklevel=4)  # fmt: skip
        classes = {label: images for label, images in classes.items() if images}
        tell_alike(name, folder, classes)
        listing = _classes(folder, classes, list(classes)[: math.ceil(len(classes) / 2)])
        return dataclasses.replace(listing, as_shown=True)
    splits: dict[str, Rows] = {}
    for number, path, label, split in csv_rows(table, name, ("path", "class", "split")):
        split = split.lower()
        if split in VALIDATION:
            raise DataError(
                f"{name}: {table}, line {number}: there is no split {split!r}, classes that choose the epoch are held "
                "out of train; write train or test"
            )
        if not path or not label or split not in ("train", "test", "query", "gallery"):
            raise DataError(
                f"{name}: {table}, line {number}: each line is path,class,split, split one of train, test, query, "
                "gallery"
            )
        splits.setdefault(split, []).append((path, label))
    if set(splits) - {"train"} not in ({"test"}, {"query", "gallery"}):
        found = ", ".join(splits) or "none"
        raise DataError(
            f"{name}: {table} has the splits {found}; it must have test, or query and gallery, and train where "
            "something is trained"
        )
    splits.setdefault("train", [])
    tell_alike(name, table, (label for rows in splits.values() for _, label in rows))
    return Listing(table, folder, splits, classes_of_one="told", as_shown=True)


def tell_alike(name: str, source: Path, labels: Iterable[str]) -> None:
    """Warn of classes whose names look alike: most often one class, written in two ways."""
    kinds: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        kinds.setdefault(" ".join(plain(label).split()), []).append(label)
    if alike := [each for each in kinds.values() if len(each) > 1]:
        first, second = alike[0][:2]
        what = "case" if first.casefold() == second.casefold() else "spaces, or in how their letters are stored"
        more = f" (and {len(alike) - 1} more such)" if len(alike) > 1 else ""
        warnings.warn(f"{name}: {source}: the classes {first} and {second} differ only in {what}{more}; where "
                      "they are one class, write it in one way".translate(LINE_ENDS), stacklevel=4)  # fmt: skip


def plain(name: str) -> str:
    """A name without what the eye does not see in it, or hardly: case, and how accents are stored."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def online_products(folder: Path, name: str) -> Listing:
    """SOP: ``Info_Files/Ebay_{train,test}.txt`` and ``images/``; or all in the folder itself, as in its archive.

    Raises:
        DataError: a list that is missing or not as said, with file and line.
    """
    splits, header = {}, "image_id class_id super_class_id path"
    inside = "images/" if (folder / "images").is_dir() else ""
    for split in ("train", "test"):
        path = _find(folder, name, f"Info_Files/Ebay_{split}.txt", f"Ebay_{split}.txt")
        lines = _lines(path, name)
        if not lines or lines[0].split() != header.split():
            raise DataError(f"{name}: {path} must begin with the header {header!r}; get it again")
        rows = [_fields(line, 4, path, number, name) for number, line in enumerate(lines[1:], 2) if line.strip()]
        splits[split] = [(inside + row[3], row[1]) for row in rows]
    return Listing(path.parent, folder, splits)


def inshop(folder: Path, name: str) -> Listing:
    """In-Shop: ``list_eval_partition.txt`` (number of rows, header, rows) and ``img/``; queries have a gallery.

    Raises:
        DataError: the list is missing or not as said, with file and line.
    """
    path = _find(folder, name, "list_eval_partition.txt", "Eval/list_eval_partition.txt")
    folder = folder / "Img" if (folder / "Img" / "img").is_dir() else folder  # as it is published
    lines = [line for line in _lines(path, name) if line.strip()]
    header = "image_name item_id evaluation_status"
    if len(lines) < 2 or not re.fullmatch(r"[0-9]{1,9}", lines[0].strip()) or lines[1].split() != header.split():
        raise DataError(f"{name}: {path} must begin with the number of rows and the header {header!r}; get it again")
    splits: dict[str, Rows] = {"train": [], "query": [], "gallery": []}
    for number, line in enumerate(lines[2:], 3):
        image, item, status = _fields(line, 3, path, number, name)
        if status not in splits:
            raise DataError(f"{name}: {path}, line {number}: status {status!r} is none of {', '.join(splits)}")
        splits[status].append((image, item))
    declared, rows = int(lines[0]), len(lines) - 2
    notes = [] if rows == declared else [f"{rows} rows in {path.name} instead of the {declared} of its first line"]
    return Listing(path, folder, splits, notes)


def inaturalist(folder: Path, name: str) -> Listing:
    """iNaturalist 2018: lists of ``train_val2018/<kind>/<species>/<image>``, whatever stands before that.

    Raises:
        DataError: a list that is missing or not as said, with file and line.
    """
    splits, top = {}, "train_val2018/"
    for split in ("train", "test"):
        path = _find(folder, name, f"Inaturalist_{split}_set1.txt")
        rows = []
        for number, line in enumerate(_lines(path, name), 1):
            if not (image := line.strip()):
                continue
            parts = image.split("/")
            if len(parts) < 3:
                raise DataError(f"{name}: {path}, line {number}: {image!r} is no path kind/species/image; get it again")
            start = image.find(top)
            rows.append((image[start:] if start >= 0 else top + "/".join(parts[-3:]), f"{parts[-3]}/{parts[-2]}"))
        splits[split] = rows
    return Listing(path.parent, folder, splits)


def _classes(folder: Path, classes: dict[str, list[str]], train: list[str], uncertain: bool = False) -> Listing:
    test = [label for label in classes if label not in train]

    def rows(some: list[str]) -> Rows:
        return [(f"{label}/{file}", label) for label in some for file in classes[label]]

    empty = [label for label in classes if not classes[label]]
    notes = [f"{len(empty)} class folder(s) without images, the first {empty[0]}"] if empty else []
    splits = {"train": rows(train), "test": rows(test)}
    return Listing(folder, folder, splits, notes, uncertain, classes_of_one="refused")


def _find(folder: Path, name: str, *places: str) -> Path:
    if not folder.is_dir():
        raise DataError(
            f"{name}: no folder {folder}; python -m vptsp_core data get {name} makes it, or name its parent with --data"
        )
    for place in places:
        if (folder / place).is_file():
            return folder / place
    raise DataError(
        f"{name}: no {' or '.join(places)} in {folder}; python -m vptsp_core data get {name} says how to get it"
    )


def _lines(path: Path, name: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: {path} is unreadable ({error}); get it again") from error


def _fields(line: str, count: int, path: Path, number: int, name: str) -> list[str]:
    fields = line.split()
    if len(fields) != count:
        raise DataError(f"{name}: {path}, line {number}: {len(fields)} fields instead of {count}; get the list again")
    return fields
