"""What every data set is to the rest of the project: labelled images, and a train / test pair of different classes."""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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
        shared: the names are also another set's (query and gallery), so some may have no image here.
        store: the same images decoded and resized, if a run reads them from there (`vptsp_core.data.batches`).

    Raises:
        DataError: labels outside of 0 to C - 1, or, unless shared, with gaps.
    """

    store: PixelStore | None = None

    def __init__(self, name: str, labels: np.ndarray, class_names: Sequence[str], shared: bool = False) -> None:
        self.name, self.shared = name, shared
        self.labels = np.array(labels, dtype=np.int64)
        self.class_names = tuple(class_names)
        found = np.unique(self.labels)
        whole = np.arange(len(self.class_names))
        if not (np.isin(found, whole).all() if shared else np.array_equal(found, whole)):
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

    @property
    def in_memory(self) -> bool:
        """Whether the images are in memory, as the array ``images``."""
        return hasattr(self, "images")

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB; raises a `DataError` that names the file if it cannot be read."""

    def reader(self, index: int) -> Callable[[], Image.Image]:
        """What reads image ``index``, small enough to be sent to another process."""
        return functools.partial(self.image, index)

    @abstractmethod
    def fingerprint(self) -> str:
        """Short hash of what the set holds (names and sizes, or pixels), for the run's record."""

    def describe(self, index: int) -> str:
        """What to call image ``index`` in a message: its path if it has one."""
        return f"{self.name} image {index}"


@dataclass(frozen=True)
class Benchmark:
    """A training set and the unseen classes it is tested on."""

    name: str
    train: ImageSet
    test: ImageSet
    gallery: ImageSet | None = None  # what ``test`` is searched in (In-Shop); None: among all other test images
    differences: tuple[str, ...] = ()  # from the published data set; with any, numbers are not the benchmark's

    def fingerprint(self) -> str:
        """Short hash over all splits."""
        return hashlib.sha256(" ".join(self._fingerprints().values()).encode()).hexdigest()[:16]

    def record(self) -> dict[str, str | list[str]]:
        """For a run's record: the name, the fingerprint of each split, and ``partial`` if there are differences."""
        partial = {"partial": list(self.differences)} if self.differences else {}
        return {"name": self.name, **self._fingerprints(), **partial}

    def _fingerprints(self) -> dict[str, str]:
        sets = {"train": self.train, "test": self.test, "gallery": self.gallery}
        return {split: images.fingerprint() for split, images in sets.items() if images is not None}
