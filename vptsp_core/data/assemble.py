"""Make a benchmark from a listing: look for every file, and compare the counts with the published ones."""

from __future__ import annotations

import dataclasses
import functools
import os
import posixpath
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vptsp_core.data.base import Benchmark
from vptsp_core.data.folder import FileSet, hash_content
from vptsp_core.data.layouts import Listing, Rows, fold
from vptsp_core.errors import DataError
from vptsp_core.system.portable import cores

Counts = Mapping[str, tuple[int, int]]  # (classes, images) per split


def make_benchmark(name: str, listing: Listing, published: Counts, allow_partial: bool = False) -> Benchmark:
    """Return the benchmark that a listing describes. ``published`` is empty for your own images. ``allow_partial``
    turns the refusal of differences from the published data set into one warning.
    Raises DataError: there are such differences (the message lists them), or the images cannot be a benchmark.
    """
    _check_listing(name, listing)
    missing = _find_missing(listing)
    if names := _find_on_disk(str(listing.root), missing):
        path, actual = min(names.items())
        warnings.warn(
            f"{name}: {len(names)} path(s) in {listing.source} are written in another case than on the disk, or their "
            f"accents are stored differently; the first is {path}{listing.where(path)}, which is read from {actual}",
            stacklevel=3,
        )
        renamed = {split: [(names.get(path, path), label) for path, label in rows]
                   for split, rows in listing.splits.items()}  # fmt: skip
        lines: dict[str, list[int]] = defaultdict(list)
        for path, numbers in listing.lines.items():
            lines[names.get(path, path)] += numbers
        listing = dataclasses.replace(listing, splits=renamed, lines=lines)
        missing = [path for path in missing if path not in names]
        _check_listing(name, listing)  # two paths may name one file
    absent = set(missing)
    splits = {split: [row for row in rows if row[0] not in absent] for split, rows in listing.splits.items()}
    differences = _report_differences(name, listing, splits, missing, published, allow_partial)
    _check_classes(name, listing, splits)
    if listing.as_shown:
        _warn_of_copies(name, listing.root, splits)
    train = _make_set(name, "train", listing, splits["train"])
    if "test" in splits:
        return Benchmark(name, train, _make_set(name, "test", listing, splits["test"]), None, differences)
    both = splits["query"] + splits["gallery"]  # they share the numbers of the classes
    query, gallery = (_make_set(name, split, listing, splits[split], both) for split in ("query", "gallery"))
    return Benchmark(name, train, query, gallery, differences)


def _report_differences(
    name: str, listing: Listing, splits: dict[str, Rows], missing: list[str], published: Counts, allow_partial: bool
) -> tuple[str, ...]:
    """Return the differences from the published data set, after one warning. Raises DataError: they are refused."""
    differences = _miscounts(splits, published)
    if missing:
        total = sum(map(len, listing.splits.values()))
        differences.append(f"{len(missing)} of {total} listed images are missing, the first "
                           f"{missing[0]}{listing.where(missing[0])}")  # fmt: skip
    if differences:  # a run's record has them too, so only the message names a folder of this machine
        below = f"; paths are relative to {listing.root}" if missing else ""
        fault = f"{name}: {listing.source}: {', '.join(differences)}{below}"
        if listing.uncertain:
            raise DataError(
                f"{fault}; the training classes are unknown, because most class names do not begin with a number "
                "as in 001.Name; complete it"
            )
        if not any(splits.values()):
            raise DataError(fault, "put the images there, or correct the paths")
        if not allow_partial:
            raise DataError(fault, "complete it, or accept this with --allow-partial")
        warnings.warn(f"{fault}; continuing with the images that exist", stacklevel=4)
    return tuple(differences)


def _check_classes(name: str, listing: Listing, splits: dict[str, Rows]) -> None:
    """Check that every split has images, and that a query has images of its class and of other classes to find."""
    if listing.as_shown and (missed := _find_hopeless(splits)):
        warnings.warn(f"{name}: {len(missed)} class(es) of {listing.source} have no other image to find, the first "
                      f"{missed[0]}; their queries can only miss", stacklevel=4)  # fmt: skip
    more = "add classes" if listing.as_shown and listing.source == listing.root else "add some"
    if empty := [split for split, rows in splits.items() if not rows and (split != "train" or listing.splits[split])]:
        raise DataError(f"{name}: {listing.source} leaves no images for {' and '.join(empty)}; {more}")
    searched = splits.get("gallery", splits.get("test", []))
    if listing.as_shown and len({label for _, label in searched}) == 1:
        cure = more if listing.source == listing.root else "give at least 2 classes the split test"
        raise DataError(f"{name}: {listing.source} has 1 class to test on, so a query cannot find a wrong class; "
                        f"{cure}")  # fmt: skip


def _make_set(name: str, split: str, listing: Listing, rows: Rows, both: Rows | None = None) -> FileSet:
    """Return one split. Classes are numbered as they first appear in ``both`` (query, gallery), or else in ``rows``."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(label for _, label in both or rows))}
    paths = [listing.root / path for path, _ in rows]
    labels = np.array([numbers[label] for _, label in rows], dtype=np.int64)
    return FileSet(f"{name} {split}", paths, labels, list(numbers), as_shown=listing.as_shown)


def _find_missing(listing: Listing) -> list[str]:
    """Return the listed paths that do not exist. To look for each file would take minutes, so folders are read."""
    files: dict[str, set[str]] = {}
    missing = []
    for path, _ in (row for rows in listing.splits.values() for row in rows):
        folder, _, file = path.rpartition("/")
        if folder not in files:
            place = listing.root / folder
            files[folder] = set(os.listdir(place) if os.path.isdir(place) else ())
        if file not in files[folder]:
            missing.append(path)
    return missing


def _find_on_disk(root: str, paths: Iterable[str]) -> dict[str, str]:
    """Map each of ``paths`` to a file whose path differs only in case or in how accents are stored. Paths without one
    such file are left out.
    """

    @functools.cache
    def names(place: str) -> dict[str, list[str]]:
        alike = defaultdict(list)
        for name in os.listdir(place) if os.path.isdir(place) else ():
            alike[fold(name)].append(name)
        return alike

    def on_disk(path: str) -> str:
        actual = ""
        for part in path.split("/"):
            place = os.path.join(root, actual)
            alike = [part] if os.path.lexists(os.path.join(place, part)) else names(place).get(fold(part), [])
            composed = unicodedata.normalize("NFC", part)
            same = [name for name in alike if unicodedata.normalize("NFC", name) == composed] or alike
            if len(same) != 1:
                return ""
            actual = os.path.join(actual, same[0])
        return actual if os.path.isfile(os.path.join(root, actual)) else ""

    return {path: actual for path in paths if (actual := on_disk(path))}


def _warn_of_copies(name: str, root: Path, splits: dict[str, Rows]) -> None:
    """Warn of one image in two classes, because one of them is wrong. A gallery may hold its queries."""
    labels = {root / path: label for rows in splits.values() for path, label in rows}
    by_content: dict[str, dict[Path, str]] = defaultdict(dict)
    with ThreadPoolExecutor(cores()) as pool:
        for file, content in zip(labels, pool.map(hash_content, labels), strict=True):
            by_content[content][file] = labels[file]
    copies = [same for same in by_content.values() if len(set(same.values())) > 1]
    if copies:
        first, *rest = copies[0]
        other = next(file for file in rest if copies[0][file] != copies[0][first])
        warnings.warn(f"{name}: {len(copies)} image(s) are in two classes or more, the first {first} and {other}; "
                      "delete the wrong copies", stacklevel=3)  # fmt: skip


def _miscounts(splits: dict[str, Rows], published: Counts) -> list[str]:
    wrong = []
    for split, expected in published.items():
        counted = len({label for _, label in splits[split]}), len(splits[split])
        kinds = zip(("classes", "images"), counted, expected, strict=True)
        part = "training" if split == "train" else split
        wrong += [f"{count} {part} {kind} instead of {wanted}" for kind, count, wanted in kinds if count != wanted]
    return wrong


def _check_listing(name: str, listing: Listing) -> None:
    """Refuse a path that is listed twice or is outside, and a class both for training and for testing."""
    seen: dict[str, str] = {}
    for path, _ in (row for rows in listing.splits.values() for row in rows):
        same = posixpath.normpath(path)  # a/./0.png and a//0.png are a/0.png
        if same in seen:
            where = listing.where(seen[same], path)
            other = ", or write test, where each image searches all others" if "query" in listing.splits else ""
            raise DataError(f"{name}: {listing.source} lists {path} twice{where}; keep one of the two lines{other}")
        if os.path.isabs(path) or ".." in path.split("/") or "\0" in path:
            raise DataError(f"{name}: {listing.source} lists {path}{listing.where(path)}, which is not inside "
                            f"{listing.root}; write a path relative to it")  # fmt: skip
        seen[same] = path
    train = {label for _, label in listing.splits["train"]}
    tested = {label for split, rows in listing.splits.items() if split != "train" for _, label in rows}
    if shared := sorted(tested & train):
        raise DataError(
            f"{name}: {listing.source} has {len(shared)} class(es) both for training and for testing, the first "
            f"{shared[0]}; testing needs unseen classes, keep each in one of the two"
        )


def _find_hopeless(splits: dict[str, Rows]) -> list[str]:
    """Return the classes whose queries can only miss: no second image, or no image in the gallery."""
    if "query" in splits:
        gallery = {label for _, label in splits["gallery"]}
        return [label for label in dict.fromkeys(label for _, label in splits["query"]) if label not in gallery]
    return [label for label, count in Counter(label for _, label in splits["test"]).items() if count < 2]
