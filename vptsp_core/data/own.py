"""Your own images (data sets `folder` and `own`): class folders or ``split.csv``, and the choice of test classes."""

from __future__ import annotations

import csv
import math
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vptsp_core.data.folder import IMAGE_SUFFIXES, count_unread
from vptsp_core.data.holdout import FEWEST, held_out_classes
from vptsp_core.data.layouts import Listing, Rows, class_folders, fold
from vptsp_core.errors import DataError

COLUMNS = ("path", "class", "split")
SPLITS = ("train", "test", "query", "gallery")
VALIDATION = ("val", "valid", "validation")  # other programs' names of a split that we make ourselves
DELIMITERS = ",;\t|"
TABLES = (".csv", ".tsv", ".xls", ".xlsx", ".ods")


class Row(NamedTuple):
    """One image: a row of ``split.csv``, or a file of a class folder."""

    line: int  # 0 without a table
    path: str
    label: str
    split: str


def list_own_images(folder: Path, name: str) -> Listing:
    """List ``<class>/<image>``, or the rows of ``split.csv`` with the columns path, class and split.

    A table with a split says which classes are for testing. Otherwise `folder` tests on the second half of the classes
    in name order. `own` tests on every fifth class of two or more images in name order: if similar classes have similar
    names, these are some of each kind. A warning counts the files that are ignored.
    Raises DataError: no classes or too few, or a fault in the table; the message names file and line.
    """
    table = folder / "split.csv"
    lines: dict[str, list[int]] = {}
    if table.is_file():
        source = table
        rows, has_split = _read_table(table, name)
        for row in rows:
            lines.setdefault(row.path, []).append(row.line)
    else:
        source = folder
        rows, has_split = _list_folders(folder, name), False
    splits = _read_splits(rows, table, name) if has_split else _choose_splits(rows, folder, name)
    _warn_of_similar(name, source, rows)
    return Listing(source, folder, splits, as_shown=True, lines=lines)


def _choose_splits(rows: list[Row], folder: Path, name: str) -> dict[str, Rows]:
    rows = sorted(rows, key=lambda row: row.label)
    classes = Counter(row.label for row in rows)
    if name == "folder":
        tested = set(list(classes)[math.ceil(len(classes) / 2) :])
    else:
        tested = _choose_every_fifth(folder, name, classes)
    return {
        "train": [(row.path, row.label) for row in rows if row.label not in tested],
        "test": [(row.path, row.label) for row in rows if row.label in tested],
    }


def _choose_every_fifth(folder: Path, name: str, classes: Mapping[str, int]) -> set[str]:
    """Choose test classes by their numbers of images, as `holdout.held_out_classes` does."""
    images = np.array(list(classes.values()))
    tested = held_out_classes(images)
    if not tested.any():
        raise DataError(
            f"{name}: {folder} holds {(images > 1).sum()} class(es) of two or more images, at least {FEWEST} are "
            "needed, since a fifth is kept for testing; add classes, or write split.csv (path,class,split), which says "
            "what to test on"
        )
    if singles := (images == 1).sum():  # as a query, such an image could only miss
        warnings.warn(f"{name}: {singles} class(es) of one image are trained on and never tested", stacklevel=2)
    return {label for label, chosen in zip(classes, tested, strict=True) if chosen}


def _list_folders(folder: Path, name: str) -> list[Row]:
    """Return the images of all class folders; a warning counts what is ignored."""
    classes, ignored = class_folders(folder, name)
    ignored += [f"{label}/ without images" for label, images in classes.items() if not images]
    if ignored:
        warnings.warn(f"{name}: {len(ignored)} file(s) or folder(s) in {folder} are ignored, the first {ignored[0]}"
                      f"{_describe_lost(folder, ignored)}", stacklevel=2)  # fmt: skip
    return [Row(0, f"{label}/{file}", label, "") for label, images in classes.items() for file in images]


def _describe_lost(folder: Path, ignored: Sequence[str]) -> str:
    """Name those ``ignored`` that a user may have wanted: images in sub-folders or of other formats, and a table."""
    names = [*ignored]
    for inside in ignored:
        for _, folders, files in os.walk(folder / inside) if "/" in inside else ():
            folders[:] = [each for each in folders if not each.startswith(".")]
            names += [f"{inside}/{file}" for file in files if not file.startswith(".")]
    count = sum(each.lower().endswith(IMAGE_SUFFIXES) for each in names if "/" in each)
    in_sub_folders = f"{count:,} image(s) in sub-folders of class folders are not used" if count else ""
    tables = [each for each in ignored if "/" not in each and each.lower().endswith(TABLES)]
    table = f"{tables[0]} is not read: a table of the images has the name split.csv" if tables else ""
    return "".join(f"; {each}" for each in (in_sub_folders, count_unread(names), table) if each)


def _read_splits(rows: Sequence[Row], table: Path, name: str) -> dict[str, Rows]:
    splits: dict[str, Rows] = {"train": []}
    for row in rows:
        if row.split in VALIDATION:
            raise DataError(
                f"{name}: {table}, line {row.line}: split {row.split!r} is not allowed, because the classes that "
                "choose the epoch are held out of train; write train or test"
            )
        if row.split not in SPLITS:
            raise DataError(f"{name}: {table}, line {row.line}: split {row.split!r} is not one of {', '.join(SPLITS)}")
        splits.setdefault(row.split, []).append((row.path, row.label))
    if set(splits) - {"train"} not in ({"test"}, {"query", "gallery"}):
        given = ", ".join(split for split in splits if splits[split]) or "none"
        raise DataError(
            f"{name}: {table} has the splits {given}; it needs test, or query and gallery, and for training also train"
        )
    return splits


def _warn_of_similar(name: str, source: Path, rows: Sequence[Row]) -> None:
    """Warn of classes whose names look the same: most often this is one class, written in two ways."""
    kinds: dict[str, list[str]] = {}
    for label in dict.fromkeys(row.label for row in rows):
        kinds.setdefault(" ".join(fold(label).split()), []).append(label)
    if alike := [each for each in kinds.values() if len(each) > 1]:
        more = f" (and {len(alike) - 1} more)" if len(alike) > 1 else ""
        warnings.warn(
            f"{name}: {source}: the classes {' and '.join(alike[0][:2])} differ only in case, spaces or "
            f"how letters are stored{more}; if they are one class, write it in one way",
            stacklevel=2,
        )


# ---- split.csv, as people and spreadsheets write it ---------------------------------------------------


def _read_table(table: Path, name: str) -> tuple[list[Row], bool]:
    """Return the rows that are not empty, with paths relative to the table's folder, and whether there is a split.

    The header shows which of `DELIMITERS` separates the columns. A column without a name must be empty, except the
    first: pandas writes its row numbers there. An unknown column is refused, because it may be a misspelt ``split``.
    """
    optional = "" if name == "folder" else "; a third column, split, is optional"
    needed = COLUMNS if name == "folder" else COLUMNS[:2]
    rows = []
    try:
        lines, delimiter, before = _read_lines(table)
        reader = csv.reader(lines[before:], strict=True, delimiter=delimiter, skipinitialspace=True)
        header = [key.strip().lower() for key in next(reader, [])]
        if not set(needed) <= set(header):
            begins = lines[before].strip()[:80] if lines else ""
            raise DataError(f"{name}: {table} must begin with the header {','.join(needed)} (separated by , ; | or "
                            f"tab), not {begins!r}{optional}")  # fmt: skip
        if unknown := [key for key in header if key and key not in COLUMNS]:
            raise DataError(f"{name}: {table} has an unknown column {unknown[0]!r}; remove it, or name it "
                            f"{', '.join(COLUMNS)}")  # fmt: skip
        if twice := [key for key in COLUMNS if header.count(key) > 1]:
            raise DataError(f"{name}: {table} has the column {twice[0]!r} twice; keep one")
        named = {0, *(at for at, key in enumerate(header) if key)}
        for fields in reader:
            where = f"{name}: {table}, line {before + reader.line_num}"
            fields = [field.strip() for field in fields]
            if surplus := [field for at, field in enumerate(fields) if field and at not in named]:
                raise DataError(f"{where}: the header has no column for {surplus[0]!r}; put a name that holds "
                                f"{delimiter!r} in double quotes")  # fmt: skip
            path, label, split = ("".join(fields[header.index(key) :][:1]) if key in header else "" for key in COLUMNS)
            if not (path or label or split):  # a spreadsheet's empty row
                continue
            if not path or not label:
                raise DataError(f"{where}: each line is {','.join(each for each in COLUMNS if each in header)}")
            label = unicodedata.normalize("NFC", label)  # one class, in whichever form its accents are stored
            rows.append(Row(before + reader.line_num, _inside(table.parent, path), label, split.lower()))
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: {table} is not in UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{name}: {table} is unreadable ({error.strerror}); check its permissions") from error
    except csv.Error as error:
        raise DataError(f"{name}: {table} is unreadable ({error}); look for a quote that is not closed") from error
    return rows, "split" in header


def _read_lines(table: Path) -> tuple[list[str], str, int]:
    """Return a table's lines, the separator of its columns, and the number of lines before the header.

    The lines before the header are empty, or a line for Excel such as ``sep=;``.
    """
    with open(table, encoding="utf-8-sig", newline="") as file:  # a name may hold a line end
        lines = list(file)
    delimiter = ""
    for before, line in enumerate(lines):
        if match := re.fullmatch(rf'"?sep=([{DELIMITERS}])[{DELIMITERS}"\s]*', line, re.IGNORECASE):
            delimiter = match[1]
        elif line.strip(f"{DELIMITERS} \r\n"):
            return lines, delimiter or max(DELIMITERS, key=line.count), before
    return [], ",", 0


def _inside(folder: Path, path: str) -> str:
    """Return ``path`` relative to the folder, if it is absolute or leads through the parent, and the file exists.

    Otherwise return ``path``. Both have forward slashes.
    """
    if os.sep == "\\" or ("\\" in path and not (folder / path).is_file()):  # a table may come from Windows
        path = path.replace("\\", "/")
    path = path.removeprefix("./")
    top = folder.absolute()
    first = path.split("/")[0]
    elsewhere = os.path.isabs(path) or first in ("..", top.name)
    if "\0" in path or not elsewhere or (first == top.name and (folder / path).is_file()):
        return path
    for base in (top, top.parent):
        file = base / path
        for whole in (os.path.abspath, os.path.realpath):
            inside = Path(whole(file.parent), file.name)
            if inside.is_relative_to(whole(top)) and inside.is_file():
                return inside.relative_to(whole(top)).as_posix()
    return path
