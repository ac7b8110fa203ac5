"""What queries find: neighbours with their cosines, R@1 of every class, and which classes are taken for each other."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from vptsp_core.data import ImageSet
from vptsp_core.data.folder import to_rgb
from vptsp_core.errors import DataError
from vptsp_core.figures.explore import Opened
from vptsp_core.method.neighbours import nearest_neighbours


@dataclass(frozen=True)
class Found:
    """The neighbours of one query, best first.

    Attributes:
        cosines: (k,) float32.
        places: (k,) int64, in the images searched.
        right: (k,) bool, of the query's class; None for a query of unknown class.
    """

    cosines: np.ndarray
    places: np.ndarray
    right: np.ndarray | None


class OwnImages(ImageSet):
    """Somebody's images of no known class: each is a class of its own, called as its file."""

    def __init__(self, images: dict[str, Image.Image]) -> None:
        super().__init__("own images", np.arange(len(images)), list(images))
        self._images = [to_rgb(image, as_shown=True) for image in images.values()]

    def image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB."""
        return self._images[index]

    def fingerprint(self) -> str:
        """Hash of sizes and pixels."""
        held = hashlib.sha256()
        for image in self._images:
            held.update(repr(image.size).encode() + image.tobytes())
        return held.hexdigest()[:16]


def neighbours(opened: Opened, query: int | Path | Image.Image, k: int) -> Found:
    """The ``k`` nearest images of one query: a place in the images searched (it does not find itself), or an image of
    your own.
    """
    if isinstance(query, int):
        vector = opened.gallery[query]
    else:
        vector = opened.embedder.embed([query])[0]
    scores, places = (found[0].numpy() for found in nearest_neighbours(vector[None], opened.gallery, k + 1))
    others = places != query if isinstance(query, int) else np.ones(len(places), dtype=bool)
    scores, places = scores[others & (places >= 0)][:k], places[others & (places >= 0)][:k]
    labels = opened.found_in.labels
    return Found(scores, places, labels[places] == labels[query] if isinstance(query, int) else None)


def all_neighbours(opened: Opened, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every test image: cosines (N, k) float32 and places (N, k) int64 of its nearest; fewer than k where there are
    no more images.
    """
    k = min(k, len(opened.gallery) - opened.among_themselves)
    scores, places = nearest_neighbours(opened.queries, opened.gallery, k, exclude_self=opened.among_themselves)
    return scores.numpy(), places.numpy()


def test_image(opened: Opened, number: int) -> int:
    """``number``, where there is a test image of it; else it raises DataError."""
    if not 0 <= number < len(opened.benchmark.test):
        raise DataError(f"query = {number}: the test images are 0 to {len(opened.benchmark.test) - 1}; choose another")
    return number


def by_class(labels: np.ndarray, first: np.ndarray, names: tuple[str, ...]) -> pd.DataFrame:
    """R@1 of every class, lowest first (equal ones in the order of their labels).

    Args:
        labels, first: (N,) classes of the queries and of their first neighbours.
        names: of all classes.

    Returns:
        One row a class that has queries: ``class`` (its label), ``name``, ``queries``, ``R@1`` in percent, ``most taken
        for`` (the name of the class that its wrong first neighbours are most often of, empty where all are right) and
        ``times``.
    """
    rows = []
    for label in np.unique(labels):
        answers = first[labels == label]
        wrong = Counter(answers[answers != label].tolist())
        other, times = min(wrong.items(), key=lambda item: (-item[1], item[0]), default=(-1, 0))
        rows.append((int(label), names[label], len(answers), 100 * float((answers == label).mean()),
                     names[other] if times else "", times))  # fmt: skip
    columns = ["class", "name", "queries", "R@1", "most taken for", "times"]
    table = pd.DataFrame(rows, columns=columns).sort_values("R@1", kind="stable")
    return table.reset_index(drop=True)


def confusions(labels: np.ndarray, first: np.ndarray, names: tuple[str, ...]) -> pd.DataFrame:
    """Pairs of classes by how many first neighbours of the one are of the other, most first.

    Args:
        labels, first, names: as for `by_class`; labels and first (N,).

    Returns:
        One row a pair with at least one: ``a`` and ``b`` (labels, a < b), their names ``class`` and ``other class``,
        ``wrong`` (both directions together), ``there`` (queries of a that found b) and ``back``.
    """
    astray = labels != first
    pairs = Counter(zip(labels[astray].tolist(), first[astray].tolist(), strict=True))
    rows = [
        (a, b, names[a], names[b], pairs[a, b] + pairs[b, a], pairs[a, b], pairs[b, a])
        for a, b in sorted({(min(pair), max(pair)) for pair in pairs})
    ]
    table = pd.DataFrame(rows, columns=["a", "b", "class", "other class", "wrong", "there", "back"])
    return table.sort_values("wrong", ascending=False, kind="stable").reset_index(drop=True)


def examples(pair: tuple[int, int], labels: np.ndarray, first: np.ndarray, count: int) -> np.ndarray:
    """Places of at most ``count`` queries of either class of a pair whose first neighbour is of the other: from both
    directions in turn, as long as both have some. labels and first (N,) as for `confusions`; (n,) int64.
    """
    ways = [np.flatnonzero((labels == here) & (first == there)) for here, there in (pair, pair[::-1])]
    turns = np.concatenate([np.arange(len(way)) for way in ways])
    return np.concatenate(ways)[np.argsort(turns, kind="stable")][:count]
