"""From a listing to a benchmark: every file is looked for, every count compared with the published one."""

from __future__ import annotations

import dataclasses
import functools
import os
import posixpath
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from vptsp_core.data.base import Benchmark
from vptsp_core.data.folder import FileSet, content_of, size_of
from vptsp_core.data.layouts import LINE_ENDS, Listing, Rows, plain
from vptsp_core.errors import DataError

Counts = Mapping[str, tuple[int, int]]
MEND = "; make it whole, or go on knowingly with --allow-partial"


def assemble(name: str, listing: Listing, published: Counts, allow_partial: bool = False) -> Benchmark:
    """The benchmark that a listing describes.

    Args:
        published: (classes, images) of each split; empty for a data set that nobody published.
        allow_partial: go on without what is missing, with one warning that lists all differences.

    Raises:
        DataError: files missing or counts other than the published ones (all differences in one line), a class
            or an image in two splits, too many or too few classes where their order makes the split, a class of one
            image where that is a mistake, a split without images.
    """
    _refuse_shared(name, listing)
    paths = [path for rows in listing.splits.values() for path, _ in rows]
    missing = _missing(str(listing.root), paths)
    if on_disk := _alike_on_disk(str(listing.root), missing):
        path, there = min(on_disk.items())
        text = f"{name}: {len(on_disk)} path(s) in {listing.source} are written in another case than on the disk, or "
        text += f"their accents are stored otherwise; the first is {path}, which is read from {there}"
        warnings.warn(text.translate(LINE_ENDS), stacklevel=3)
        renamed = {split: [(on_disk.get(path, path), label) for path, label in rows]
                   for split, rows in listing.splits.items()}  # fmt: skip
        listing, missing = dataclasses.replace(listing, splits=renamed), missing - on_disk.keys()
        _refuse_shared(name, listing)  # two ways to write one file
        paths = [path for rows in renamed.values() for path, _ in rows]
    splits = {split: [row for row in rows if row[0] not in missing] for split, rows in listing.splits.items()}
    differences = [*_miscounts(splits, published), *listing.notes]
    if missing:
        first = next(path for path in paths if path in missing)
        differences.append(f"{len(missing)} of {len(paths)} listed images not, the first {listing.root / first}")
    if differences and "query" in splits and listing.classes_of_one == "fine" and (missed := _can_only_miss(splits)):
        differences.append(f"{len(missed)} query class(es) without gallery images, the first {missed[0]}")
    if differences:
        found = f"{name}: {listing.source} holds {', '.join(differences)}".translate(LINE_ENDS)
        if listing.uncertain:
            raise DataError(
                f"{found}; which classes are for training cannot be told, their names begin with no number as in "
                "001.Name; make it whole"
            )
        if not allow_partial:
            raise DataError(found + MEND)
        warnings.warn(f"{found}; going on with what is there", stacklevel=3)
    if listing.classes_of_one == "refused":
        _refuse_classes_of_one(listing, splits)
    elif listing.classes_of_one == "told" and (missed := _can_only_miss(splits)):
        text = f"{name}: {len(missed)} class(es) of {listing.source} have nothing to be found, the first {missed[0]}"
        warnings.warn(f"{text}; their queries can only miss".translate(LINE_ENDS), stacklevel=3)
    if empty := [split for split, rows in splits.items() if not rows and (split != "train" or listing.splits[split])]:
        raise DataError(f"{name}: {listing.source} leaves no images for {' and '.join(empty)}; add some")
    searched = splits.get("gallery", splits.get("test", []))
    if listing.as_shown and len({label for _, label in searched}) == 1:
        cure = "add classes" if listing.source == listing.root else "give at least 2 classes the split test"
        raise DataError(f"{name}: {listing.source} has 1 class to test on, and among its images alone nothing can be "
                        f"confused; {cure}")  # fmt: skip
    if listing.as_shown:
        _tell_copies(name, listing.root, splits)
    train = _fileset(name, "train", listing, splits["train"], splits["train"])
    if "test" in splits:
        return Benchmark(name, train, _fileset(name, "test", listing, splits["test"], splits["test"]), None,
                         tuple(differences))  # fmt: skip
    both = splits["query"] + splits["gallery"]  # one numbering of the classes for both
    query, gallery = (_fileset(name, split, listing, splits[split], both) for split in ("query", "gallery"))
    return Benchmark(name, train, query, gallery, tuple(differences))


def _fileset(name: str, split: str, listing: Listing, rows: Rows, numbering: Rows) -> FileSet:
    numbers = {label: number for number, label in enumerate(dict.fromkeys(label for _, label in numbering))}
    paths = [listing.root / path for path, _ in rows]
    labels = np.array([numbers[label] for _, label in rows], dtype=np.int64)
    shared = numbering is not rows
    return FileSet(f"{name} {split}", paths, labels, list(numbers), shared, as_shown=listing.as_shown)


def _missing(root: str, paths: Iterable[str]) -> set[str]:
    """The paths that are no files; each folder is read once, since hundreds of thousands of stats take minutes."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        folder, _, file = path.rpartition("/")
        wanted[folder].add(file)
    missing: set[str] = set()
    for folder, files in wanted.items():
        place = os.path.join(root, folder)
        try:
            with os.scandir(place) as entries:
                there = {entry.name for entry in entries if entry.name in files and entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            there = set()
        except OSError as error:
            raise DataError(f"cannot read {place} ({error.strerror or error}); mend or remove it") from error
        missing.update(f"{folder}/{file}" if folder else file for file in files - there)
    return missing


def _alike_on_disk(root: str, paths: Iterable[str]) -> dict[str, str]:
    """Of ``paths`` that are no files, those that are but for case and how accents are stored, with the files' own
    paths. Where several names are alike, none is chosen.
    """

    @functools.cache
    def names(place: str) -> dict[str, list[str]]:
        alike = defaultdict(list)
        for name in os.listdir(place) if os.path.isdir(place) else ():
            alike[plain(name)].append(name)
        return alike

    def there(path: str) -> str:
        found = ""
        for part in path.split("/"):
            place = os.path.join(root, found)
            alike = [part] if os.path.lexists(os.path.join(place, part)) else names(place).get(plain(part), [])
            composed = unicodedata.normalize("NFC", part)
            same = [name for name in alike if unicodedata.normalize("NFC", name) == composed] or alike
            if len(same) != 1:
                return ""
            found = os.path.join(found, same[0])
        return found if os.path.isfile(os.path.join(root, found)) else ""

    return {path: found for path in paths if (found := there(path))}


def _tell_copies(name: str, root: Path, splits: dict[str, Rows]) -> None:
    """Warn of one file in two classes: whichever is right, the other is wrong. A gallery may hold its queries."""
    by_size: dict[int, list[tuple[Path, str]]] = defaultdict(list)
    for path, label in dict.fromkeys(row for rows in splits.values() for row in rows):
        by_size[size_of(root / path)].append((root / path, label))
    by_content: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for alike in by_size.values():
        for file, label in alike if len({label for _, label in alike}) > 1 else ():
            by_content[content_of(file)].append((file, label))
    copies = [same for same in by_content.values() if len({label for _, label in same}) > 1]
    if copies:
        first, label = copies[0][0]
        other = next(each for each in copies[0] if each[1] != label)[0]
        text = f"{name}: {len(copies)} image(s) are in two classes or more, the first {first} and {other}"
        warnings.warn(f"{text}; delete the wrong copies".translate(LINE_ENDS), stacklevel=4)


def _miscounts(splits: dict[str, Rows], published: Counts) -> list[str]:
    wrong = []
    for split, (classes, images) in published.items():
        kind = "training" if split == "train" else split
        found = len({label for _, label in splits[split]}), len(splits[split])
        for what, count, expected in (("classes", found[0], classes), ("images", found[1], images)):
            if count != expected:
                wrong.append(f"{count} {kind} {what} instead of {expected}")
    return wrong


def _refuse_shared(name: str, listing: Listing) -> None:
    seen: set[str] = set()
    for path, _ in (row for rows in listing.splits.values() for row in rows):
        same = posixpath.normpath(path)  # a/./0.png and a//0.png are a/0.png
        if same in seen:
            raise DataError(f"{name}: {listing.source} lists {path} twice; keep one of the two lines")
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise DataError(f"{name}: {listing.source} lists {path}, which is not inside {listing.root}; write it so")
        seen.add(same)
    train = {label for _, label in listing.splits["train"]}
    shared = sorted({label for split, rows in listing.splits.items() if split != "train" for _, label in rows} & train)
    if shared:
        raise DataError(
            f"{name}: {listing.source} has {len(shared)} class(es) both for training and for testing, the first "
            f"{shared[0]}; testing needs unseen classes, leave each on one side"
        )


def _refuse_classes_of_one(listing: Listing, splits: dict[str, Rows]) -> None:
    """A class of one image has nothing to be retrieved by: its query can only miss."""
    for label, count in Counter(label for rows in splits.values() for _, label in rows).items():
        if count < 2:
            raise DataError(
                f"class {listing.root / label} has {count} image(s), at least 2 are needed; add or remove it"
            )


def _can_only_miss(splits: dict[str, Rows]) -> list[str]:
    """Classes to be retrieved that have no second image, or none in the gallery."""
    if "query" in splits:
        gallery = {label for _, label in splits["gallery"]}
        return [label for label in dict.fromkeys(label for _, label in splits["query"]) if label not in gallery]
    return [label for label, count in Counter(label for _, label in splits["test"]).items() if count < 2]
