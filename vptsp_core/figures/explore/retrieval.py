"""The neighbours of queries with their cosines, R@1 of every class, and pairs of classes that are confused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from vptsp_core.errors import DataError
from vptsp_core.figures.explore import Opened
from vptsp_core.method.neighbours import nearest_neighbours


@dataclass(frozen=True)
class QueryNeighbours:
    """The neighbours of one query, best first.

    Attributes:
        cosines: (k,) float32.
        places: (k,) int64, their indices in the gallery.
        right: (k,) bool, whether each is of the query's class. None if the query's class is unknown.
    """

    cosines: np.ndarray
    places: np.ndarray
    right: np.ndarray | None


def neighbours(opened: Opened, query: int | Path | Image.Image, k: int) -> QueryNeighbours:
    """Find the ``k`` nearest gallery images of a query.

    Args:
        query: an index into the gallery (that image is left out), a path, or an image.
    """
    index = query if isinstance(query, int) else -1
    vector = opened.gallery[query] if isinstance(query, int) else opened.embedder.embed([query])[0]
    scores, places = (each[0].numpy() for each in nearest_neighbours(vector[None], opened.gallery, k + 1))
    others = (places >= 0) & (places != index)
    scores, places = scores[others][:k], places[others][:k]
    labels = opened.searched.labels
    return QueryNeighbours(scores, places, labels[places] == labels[index] if index >= 0 else None)


def all_neighbours(opened: Opened, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the ``k`` nearest images of every test image, or all if there are fewer.

    Returns their cosines (N, k) float32 and their indices in the gallery (N, k) int64.
    """
    k = min(k, len(opened.gallery) - opened.same_gallery)
    scores, places = nearest_neighbours(opened.queries, opened.gallery, k, exclude_self=opened.same_gallery)
    return scores.numpy(), places.numpy()


def test_image(opened: Opened, number: int) -> int:
    """Return ``number``. Raises DataError if the test set has no image of this number."""
    if not 0 <= number < len(opened.benchmark.test):
        raise DataError(f"query = {number}: the test images are 0 to {len(opened.benchmark.test) - 1}; choose another")
    return number


def by_class(labels: np.ndarray, first: np.ndarray, names: tuple[str, ...]) -> pd.DataFrame:
    """Measure R@1 of every class that has queries, lowest first, equal ones in the order of their labels.

    Args:
        labels, first: (N,) classes of the queries and of their first neighbours.
        names: the names of all classes.

    Returns:
        One row per class: ``class`` (its label), ``name``, ``queries``, ``R@1`` in percent, ``most taken for`` (the
        most frequent class among its wrong first neighbours, empty if there are none) and ``times`` (how often).
    """
    rows = []
    for label in np.unique(labels):
        answers = first[labels == label]
        others, counts = np.unique(answers[answers != label], return_counts=True)
        rows.append({
            "class": int(label), "name": names[label], "queries": len(answers),
            "R@1": 100 * float((answers == label).mean()),
            "most taken for": names[others[counts.argmax()]] if len(others) else "",
            "times": int(counts.max(initial=0)),
        })  # fmt: skip
    return pd.DataFrame(rows).sort_values("R@1", kind="stable", ignore_index=True)


def confusions(labels: np.ndarray, first: np.ndarray, names: tuple[str, ...]) -> pd.DataFrame:
    """Count, for each pair of classes, the queries of one class whose first neighbour is of the other.

    Args:
        labels, first: (N,), as for `by_class`.
        names: the names of all classes.

    Returns:
        One row per pair with at least one such query, the largest count first: ``a`` and ``b`` (labels, a < b), their
        names ``class`` and ``other class``, ``wrong`` (the count, both directions together), ``there`` (queries of a
        that found b) and ``back`` (queries of b that found a).
    """
    wrong = labels != first
    low, high = np.minimum(labels, first)[wrong], np.maximum(labels, first)[wrong]
    queries = pd.DataFrame({"a": low, "b": high, "there": labels[wrong] == low})
    pairs = queries.groupby(["a", "b"], as_index=False).agg(wrong=("there", "size"), there=("there", "sum"))
    pairs.insert(2, "class", [names[label] for label in pairs["a"]])
    pairs.insert(3, "other class", [names[label] for label in pairs["b"]])
    pairs["back"] = pairs["wrong"] - pairs["there"]
    return pairs.sort_values("wrong", ascending=False, kind="stable", ignore_index=True)


def examples(pair: tuple[int, int], labels: np.ndarray, first: np.ndarray, count: int) -> np.ndarray:
    """Choose at most ``count`` queries of a pair of classes whose first neighbour is of the other class.

    The two directions alternate while both have queries. labels and first (N,) are as for `by_class`. Returns the
    queries' indices, (n,) int64.
    """
    ways = [np.flatnonzero((labels == here) & (first == there)) for here, there in (pair, pair[::-1])]
    turns = np.concatenate([np.arange(len(way)) for way in ways])
    return np.concatenate(ways)[np.argsort(turns, kind="stable")][:count]
