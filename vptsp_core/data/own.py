"""Anyone's images, split for training on them: every fifth class is kept for testing (data set ``own``)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from vptsp_core.data.class_folders import class_folders, lost_below
from vptsp_core.data.layouts import LINE_ENDS, Listing, Rows, own_images, tell_alike
from vptsp_core.data.split_csv import csv_header, csv_rows
from vptsp_core.errors import DataError

EVERY = 5  # the last of every five classes, in name order, is for testing
FEWEST = 10  # classes of two or more images, so that two are tested on: among one alone nothing can be confused
_NAMED = 3


def every_fifth(folder: Path, name: str) -> Listing:
    """``<class>/<image>``, or ``split.csv`` with the header ``path,class``; one that has a ``split`` decides itself.

    Of the classes with two or more images, in name order, the 5th, 10th, ... are for testing: where alike classes have
    alike names, of each kind some. Classes of one image are trained on; as a query, their image could only miss. Empty
    folders and other things that are left out are told in a warning.

    Raises:
        DataError: fewer than 10 classes of two or more images, or a table that is not as said.
    """
    table = folder / "split.csv"
    if table.is_file():
        if {"path", "class", "split"} <= set(csv_header(table)):
            return own_images(folder, name)
        classes: dict[str, list[str]] = {}
        for number, path, label in csv_rows(table, name, ("path", "class")):
            if not path or not label:
                raise DataError(f"{name}: {table}, line {number}: each line is path,class")
            classes.setdefault(label, []).append(path)
        classes = dict(sorted(classes.items()))
    else:
        found, ignored = class_folders(folder, name)
        classes = {label: [f"{label}/{file}" for file in files] for label, files in found.items() if files}
        _tell(f"{name}: {folder}", "class folder(s) without images are left out", found.keys() - classes.keys())
        _tell(f"{name}: {folder}", "thing(s) that are no images or folders of them are ignored", ignored,
              lost_below(folder, ignored))  # fmt: skip
    tell_alike(name, table if table.is_file() else folder, classes)
    several = [label for label, images in classes.items() if len(images) > 1]
    if len(several) < FEWEST:
        raise DataError(
            f"{name}: {folder} holds {len(several)} class(es) of two or more images, at least {FEWEST} are needed, "
            "since a fifth is kept for testing; add classes, or say in split.csv (path,class,split) which to test on"
        )
    if singles := len(classes) - len(several):
        warnings.warn(f"{name}: {singles} class(es) of one image are trained on and never tested", stacklevel=1)
    tested = set(several[EVERY - 1 :: EVERY])

    def rows(test: bool) -> Rows:
        return [(image, label) for label, images in classes.items() if (label in tested) is test for image in images]

    return Listing(
        table if table.is_file() else folder, folder, {"train": rows(False), "test": rows(True)}, as_shown=True
    )


def _tell(where: str, what: str, names: Iterable[str], end: str = "") -> None:
    if listed := sorted(names):
        more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
        text = f"{where}: {len(listed)} {what}: {', '.join(listed[:_NAMED])}{more}{end}"
        warnings.warn(text.translate(LINE_ENDS), stacklevel=1)
