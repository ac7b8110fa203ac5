"""From a listing to a benchmark: every file is looked for, every count compared with the published one."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from vptsp_core.data.base import Benchmark
from vptsp_core.data.folder import FileSet
from vptsp_core.data.layouts import Listing
from vptsp_core.errors import DataError

Counts = Mapping[str, tuple[int, int]]
CURE = "; complete it, or accept this with --allow-partial"
CONTINUING = "; continuing with what is there"


def assemble(name: str, listing: Listing, published: Counts, allow_partial: bool = False) -> Benchmark:
    """The benchmark that a listing describes.

    Args:
        published: (classes, images) of each split; empty for a data set that nobody published.
        allow_partial: continue without what is missing, with one warning that lists all differences.

    Raises:
        DataError: files are missing or counts differ from the published ones (all differences in one line), an image is
            listed twice, a class is both for training and for testing, or a split has no images.
    """
    _refuse_shared(name, listing)
    there = listing.images["path"].map(_finder(listing)).astype(bool)
    lost = listing.images["path"][~there]
    if len(lost) and not there.any():
        raise DataError(f"{name}: none of the {len(lost)} images of {listing.source} is in {listing.root}, the first "
                        f"{lost.iloc[0]}; paths are relative to that folder")  # fmt: skip
    images = listing.images[there]
    part = {split: images[images["split"] == split] for split in ("train", "test", "query", "gallery")}
    splits = set(listing.images["split"])
    tested = ["query", "gallery"] if "gallery" in splits else ["test"]
    only_miss = _can_only_miss(part)

    differences = _miscounts(part, published)
    if len(lost):
        differences.append(f"{len(lost)} of {len(there)} listed images are not in {listing.root}, the first "
                           f"{lost.iloc[0]}")  # fmt: skip
    nothing = f"{len(only_miss)} class(es) have nothing to be found, the first {only_miss[0]}" if only_miss else ""
    if differences and published and only_miss:
        differences.append(nothing)
    if differences:
        fault = f"{name}: {listing.source} is not whole: {', '.join(differences)}"
        if listing.ordered:
            raise DataError(f"{fault}; complete it: the order of its class folders tells which are for training")
        if not allow_partial:
            raise DataError(fault + CURE)
        warnings.warn(fault + CONTINUING, stacklevel=3)
    if only_miss and not published:
        warnings.warn(f"{name}: {listing.source}: {nothing}; their queries can only miss", stacklevel=3)

    if empty := [split for split in part if part[split].empty and (split in splits or split in tested)]:
        raise DataError(f"{name}: {listing.source} leaves no images for {' and '.join(empty)}; add some")
    classes = pd.concat([part[split] for split in tested])["class"].unique().tolist()  # one numbering of both
    if part[tested[-1]]["class"].nunique() == 1 and not published:
        raise DataError(f"{name}: {listing.source} has 1 class to test on, and among its images alone nothing can be "
                        "confused; test on at least 2")  # fmt: skip
    train = _fileset(name, "train", listing, part["train"], part["train"]["class"].unique().tolist())
    test, *gallery = (_fileset(name, split, listing, part[split], classes) for split in tested)
    return Benchmark(name, train, test, gallery[0] if gallery else None, tuple(differences))


def _fileset(name: str, split: str, listing: Listing, images: pd.DataFrame, classes: Sequence[str]) -> FileSet:
    """One split, its classes numbered in the order of ``classes``."""
    paths = [listing.root / path for path in images["path"]]
    numbers = {label: number for number, label in enumerate(classes)}
    labels = images["class"].map(numbers).to_numpy(np.int64)
    shared = split in ("query", "gallery")
    return FileSet(f"{name} {split}", paths, labels, classes, shared, as_shown=listing.as_shown)


def _finder(listing: Listing) -> Callable[[str], bool]:
    """Says whether a listed path is a file. A folder is read once: hundreds of thousands of stats take minutes."""

    @functools.cache
    def files(folder: str) -> set[str]:
        try:
            with os.scandir(os.path.join(listing.root, folder)) as entries:
                return {entry.name for entry in entries if entry.is_file()}
        except PermissionError:
            raise
        except (OSError, ValueError):  # no such folder, or no name of one
            return set()

    return lambda path: os.path.basename(path) in files(os.path.dirname(path))


def _miscounts(part: Mapping[str, pd.DataFrame], published: Counts) -> list[str]:
    wrong = []
    for split, (classes, images) in published.items():
        for what, count, wanted in (
            ("classes", part[split]["class"].nunique(), classes),
            ("images", len(part[split]), images),
        ):
            if count != wanted:
                wrong.append(f"{count} {'training' if split == 'train' else split} {what} instead of {wanted}")
    return wrong


def _refuse_shared(name: str, listing: Listing) -> None:
    """Refuse an image that is listed twice, and a class both for training and for testing."""
    images = listing.images
    if (twice := images["path"].duplicated()).any():
        raise DataError(f"{name}: {listing.source} lists {images['path'][twice].iloc[0]} twice; keep one of the lines")
    training = images["split"] == "train"
    if shared := sorted(set(images["class"][training]) & set(images["class"][~training])):
        raise DataError(
            f"{name}: {listing.source} has {len(shared)} class(es) both for training and for testing, the first "
            f"{shared[0]}; testing needs unseen classes, leave each on one side"
        )


def _can_only_miss(part: Mapping[str, pd.DataFrame]) -> list[str]:
    """Classes to be retrieved that have no second image, or none in the gallery."""
    if not part["query"].empty:
        queries = part["query"]["class"]
        return queries[~queries.isin(part["gallery"]["class"])].unique().tolist()
    counts = part["test"]["class"].value_counts(sort=False)
    return counts[counts < 2].index.tolist()
