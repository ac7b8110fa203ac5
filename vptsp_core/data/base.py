"""The two classes that every data set consists of: `ImageSet`, labelled images, and `Benchmark`, its splits."""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vptsp_core.data.store import PixelStore

OWN = ("folder", "own")  # the data sets of your own images: their names do not say which images they are


class ImageSet(ABC):
    """N labelled images, decoded one at a time.

    Attributes:
        name: for messages, e.g. ``"cub200 test"``.
        labels: (N,) int64, from 0 to C - 1. Every class has an image. But query and gallery share their C classes, so
            there a class may have images in only one of the two.
        class_names: C names, in the order of the labels.
        store: the same images, decoded and resized, for the cached pipeline (`batches.decoded`).
    """

    store: PixelStore | None = None

    def __init__(self, name: str, labels: np.ndarray, class_names: Sequence[str]) -> None:
        self.name = name
        self.labels = np.array(labels, dtype=np.int64)
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.class_names)

    @property
    def in_memory(self) -> bool:
        """Whether the images are in memory, as the array ``images``."""
        return hasattr(self, "images")

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Return image ``index`` as RGB. Raises DataError: the file, which is named, cannot be read."""

    def reader(self, index: int) -> Callable[[], Image.Image]:
        """Return a function that reads image ``index`` and is small enough to be sent to another process."""
        return functools.partial(self.image, index)

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short hash of the set's content (names and sizes, or pixels), for the run's record."""

    def describe(self, index: int) -> str:
        """Name image ``index`` for a message: by its path if it has one."""
        return f"{self.name} image {index}"


@dataclass(frozen=True)
class Benchmark:
    """A training set, and a test set of other classes."""

    name: str
    train: ImageSet
    test: ImageSet
    # The images that ``test`` searches, as in In-Shop. If None, the test images search each other.
    gallery: ImageSet | None = None
    # Differences from the published data set. If there are any, the numbers cannot be compared with published ones.
    differences: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return a short hash over all splits."""
        return hashlib.sha256(" ".join(self._fingerprints().values()).encode()).hexdigest()[:16]

    def record(self) -> dict[str, str | list[str]]:
        """Return the name, the fingerprints of the splits and, if any, the differences, for a run's record."""
        partial = {"partial": list(self.differences)} if self.differences else {}
        return {"name": self.name, **self._fingerprints(), **partial}

    def _fingerprints(self) -> dict[str, str]:
        sets = {"train": self.train, "test": self.test, "gallery": self.gallery}
        return {split: images.fingerprint() for split, images in sets.items() if images is not None}
