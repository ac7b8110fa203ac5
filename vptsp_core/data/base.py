"""What every data set is to the rest of the project: labelled images, and a train / test pair with unlike classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vptsp_core.data.store import PixelStore
from vptsp_core.errors import DataError


class ImageSet(ABC):
    """N labelled images, decoded one at a time.

    Attributes:
        name: what messages call it, e.g. ``"cub200 test"``.
        labels: (N,) int64, contiguous from 0 to C - 1.
        class_names: C names, in the order of the labels.
        store: the same images decoded and resized, where a run reads them from there (`vptsp_core.data.batches`).
    """

    store: PixelStore | None = None

    def __init__(self, name: str, labels: np.ndarray, class_names: Sequence[str]) -> None:
        self.name = name
        self.labels = np.array(labels, dtype=np.int64)
        self.class_names = tuple(class_names)
        found = np.unique(self.labels)
        if not np.array_equal(found, np.arange(len(self.class_names))):
            raise DataError(
                f"{name}: labels must run from 0 to {len(self.class_names) - 1} without gaps; "
                f"found {len(found)} different ones; give every class at least one image"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB; raises `DataError` naming the file where it cannot be read."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Short hash of what the set holds (names and sizes, or pixels), for the run's record."""

    def describe(self, index: int) -> str:
        """What to call image ``index`` in a message: its path where it has one."""
        return f"{self.name} image {index}"


@dataclass(frozen=True)
class Benchmark:
    """A training set and the unseen classes it is tested on.

    ``gallery`` is None where every test image is searched for among all others (CUB, Cars, SOP, iNaturalist);
    where it is given, ``test`` holds the queries (In-Shop).
    """

    name: str
    train: ImageSet
    test: ImageSet
    gallery: ImageSet | None = None
