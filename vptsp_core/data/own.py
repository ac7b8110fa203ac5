"""Your own images: class folders or ``split.csv``, and which classes are for testing (data sets `folder`, `own`)."""

from __future__ import annotations

import csv
import posixpath
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from vptsp_core.data.folder import not_read
from vptsp_core.data.holdout import FEWEST, held_out_classes
from vptsp_core.data.layouts import COLUMNS, Listing, class_folders, listed
from vptsp_core.errors import DataError

SPLITS = ("train", "test", "query", "gallery")
DELIMITERS = ",;\t|"


def own_images(folder: Path, name: str) -> Listing:
    """``<class>/<image>``, or ``split.csv`` with the columns path, class and split.

    A table with a split decides which classes are for testing. Without one, `folder` tests on the second half of the
    classes in name order, and `own` on the 5th, 10th, ... of those with two or more images: where similar classes have
    similar names, some of each kind. `own` trains on classes of one image; as a query, their image could only miss.
    What is left out is reported in a warning.

    Raises:
        DataError: no classes or too few, or a table that is not as described, with file and line.
    """
    table = folder / "split.csv"
    source = table if table.is_file() else folder
    images = _by_table(table, name) if table.is_file() else _by_folder(folder, name)
    _warn_of_similar(name, source, images["class"].unique().tolist())
    if images["split"].eq("").all():
        images = images.sort_values("class", kind="stable")
        classes = images["class"].value_counts(sort=False)
        second_half = np.arange(len(classes)) >= (len(classes) + 1) // 2
        tested = second_half if name == "folder" else _every_fifth(source, name, classes.to_numpy())
        is_tested = images["class"].isin(classes.index[tested])
        images = images.assign(split=np.where(is_tested, "test", "train"))
    return Listing(source, folder, images, as_shown=True)


def _every_fifth(source: Path, name: str, images: np.ndarray) -> np.ndarray:
    """Which classes are tested, (C,) bool, as `holdout.held_out_classes` chooses; ``images`` counts those of each."""
    tested = held_out_classes(images)
    if not tested.any():
        raise DataError(
            f"{name}: {source} holds {(images > 1).sum()} class(es) of two or more images, at least {FEWEST} are "
            "needed, since a fifth is kept for testing; add classes, or say in split.csv (path,class,split) which to "
            "test on"
        )
    if singles := (images == 1).sum():
        warnings.warn(f"{name}: {singles} class(es) of one image are trained on and never tested", stacklevel=2)
    return tested


def _by_folder(folder: Path, name: str) -> pd.DataFrame:
    """The images of each class folder that has some; a warning counts what is ignored."""
    classes, ignored = class_folders(folder, name)
    ignored += [f"{label}/ without images" for label, files in classes.items() if not files]
    if ignored:
        warnings.warn(f"{name}: {len(ignored)} thing(s) in {folder} are ignored, being no images in class folders, the "
                      f"first {ignored[0]}{not_read(ignored)}", stacklevel=2)  # fmt: skip
    return listed((f"{label}/{file}", label, "") for label, files in classes.items() for file in files)


def _warn_of_similar(name: str, source: Path, labels: list[str]) -> None:
    """Warn of classes whose names differ only in case or spaces: most often one class, written in two ways."""
    seen: dict[str, str] = {}
    for label in labels:
        other = seen.setdefault(" ".join(label.casefold().split()), label)
        if other != label:
            warnings.warn(f"{name}: {source}: the classes {other} and {label} differ only in case or spaces; if they "
                          "are one class, write it in one way", stacklevel=2)  # fmt: skip


def _by_table(table: Path, name: str) -> pd.DataFrame:
    """The rows of ``split.csv``, as people and spreadsheets write it; the split is empty where it has no such column.

    Columns are separated by the one of `DELIMITERS` that the header has most often. A column without a name must be
    empty, but for the first: pandas writes its row numbers there. Paths may be absolute, or have backslashes.

    Raises:
        DataError: the table is unreadable or its columns are not those that it must have (a mis-spelt ``split`` would
            be passed over), or a line is incomplete, has more values than the header or a split that is not known.
    """
    rows = []
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(DELIMITERS, key=first.count)
            file.seek(0)
            reader = csv.reader(file, strict=True, delimiter=delimiter, skipinitialspace=True)
            header = [column.strip().lower() for column in next(reader, [])]
            while header and not header[-1]:  # a spreadsheet's empty columns
                header.pop()
            named = header[1:] if header and not header[0] else header  # pandas writes its row numbers first
            if sorted(named) not in (sorted(COLUMNS), sorted(COLUMNS[:2])):
                raise DataError(f"{name}: {table} must begin with the header path,class or path,class,split (separated "
                                f"by , ; | or tab), not {first.strip()[:80]!r}")  # fmt: skip
            for fields in reader:
                where = f"{name}: {table}, line {reader.line_num}"
                values = [value.strip() for value in fields]
                row = dict(zip(header, values, strict=False))
                path, label, split = (row.get(column, "") for column in COLUMNS)
                if any(values[len(header) :]):
                    raise DataError(f"{where}: more values than columns; put a name that holds {delimiter} in quotes")
                if not any((path, label, split)):  # a spreadsheet's empty row
                    continue
                if not path or not label:
                    raise DataError(f"{where}: each line is {','.join(named)}")
                if "split" in named and split.lower() not in SPLITS:
                    raise DataError(f"{where}: unknown split {split!r}; write one of {', '.join(SPLITS)} (what chooses "
                                    "the epoch is held out of train)")  # fmt: skip
                label = unicodedata.normalize("NFC", label)  # one class, however its accents are stored
                rows.append((posixpath.normpath(path.replace("\\", "/")), label, split.lower()))
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: {table} is not in UTF-8 ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{name}: {table} is unreadable ({error}); look for a quote that is not closed") from error
    found = {split for _, _, split in rows}
    if "split" in named and found - {"train"} not in ({"test"}, {"query", "gallery"}):
        raise DataError(f"{name}: {table} has the splits {', '.join(sorted(found))}; it must have test, or query and "
                        "gallery, and train where something is trained")  # fmt: skip
    return listed(rows)
