"""Views of image sets, and the training classes that are held out to choose an epoch (`RunConfig.holds_out`)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from vptsp_core.data.base import Benchmark, ImageSet
from vptsp_core.errors import DataError
from vptsp_core.method.config import RunConfig

EVERY = 5  # of every five classes of two or more images, in the order of the labels, the last one is held out
FEWEST = 10  # classes of two or more images, so that two are held out: with one, a query could not find a wrong class


class Subset(ImageSet):
    """A view of some images of the set ``whole``: ``rows`` (n,), with new contiguous ``labels`` (n,)."""

    def __init__(
        self, whole: ImageSet, rows: np.ndarray, name: str, labels: np.ndarray, class_names: Sequence[str]
    ) -> None:
        self.whole, self.rows = whole, rows
        super().__init__(name, labels, class_names)
        self.store = whole.store and whole.store.part(self.rows)

    @property
    def in_memory(self) -> bool:
        return self.whole.in_memory

    def image(self, index: int) -> Image.Image:
        return self.whole.image(int(self.rows[index]))

    def reader(self, index: int) -> Callable[[], Image.Image]:
        return self.whole.reader(int(self.rows[index]))

    def describe(self, index: int) -> str:
        return self.whole.describe(int(self.rows[index]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.whole.fingerprint().encode() + self.rows.tobytes()).hexdigest()[:16]


def of_classes(whole: ImageSet, classes: Sequence[int], name: str) -> Subset:
    """Return the images of some ``classes``, which are ascending labels, in the order of the whole set."""
    rows = np.flatnonzero(np.isin(whole.labels, classes))
    labels = np.searchsorted(classes, whole.labels[rows])
    return Subset(whole, rows, name, labels, [whole.class_names[label] for label in classes])


def first_of_each(whole: ImageSet, count: int) -> Subset:
    """Return the first ``count`` images of every class, or all of a smaller class, class by class."""
    order = np.argsort(whole.labels, kind="stable")
    labels = whole.labels[order]
    within = np.arange(len(labels)) - np.searchsorted(labels, labels)
    return Subset(whole, order[within < count], whole.name, labels[within < count], whole.class_names)


def for_selection(benchmark: Benchmark, config: RunConfig) -> tuple[Benchmark, Benchmark | None]:
    """Return the benchmark to train and test on, and the benchmark to choose the epoch on, if the config has one."""
    if not config.holds_out or config.method == "frozen":
        return benchmark, None
    return hold_out(benchmark)


def held_out_classes(images: np.ndarray) -> np.ndarray:
    """Choose classes to hold out by the number of ``images`` of each class (C,). Return (C,) bool, equal for all seeds.

    They are the 5th, 10th, 15th, ... class of two or more images, in the order of the labels; none if that gives fewer
    than two. In the order of names, similar classes are neighbours, so a fifth of each kind is held out.
    """
    several = np.flatnonzero(images > 1)
    held_out = np.zeros(len(images), dtype=bool)
    if len(several) >= FEWEST:
        held_out[several[EVERY - 1 :: EVERY]] = True
    return held_out


def hold_out(benchmark: Benchmark) -> tuple[Benchmark, Benchmark]:
    """Return two benchmarks without the `held_out_classes` in their training set. The first is tested as before. The
    second is tested on the held-out classes, without a separate gallery.
    Raises DataError: too few training classes.
    """
    train = benchmark.train
    held_out = held_out_classes(np.bincount(train.labels, minlength=train.num_classes))
    if not held_out.any():
        raise DataError(
            f"{train.name}: too few of {train.num_classes} classes can be held out, at least {FEWEST} of two or more "
            "images are needed; choose selection = 'last'"
        )
    rest, validation = (
        of_classes(train, np.flatnonzero(chosen).tolist(), f"{benchmark.name} {name}")
        for chosen, name in ((~held_out, "train"), (held_out, "validation"))
    )
    return (
        dataclasses.replace(benchmark, train=rest),
        dataclasses.replace(benchmark, train=rest, test=validation, gallery=None),
    )
