"""UMAP of an embedding space, the choice of classes and images to show, and the distances of proxies to classes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch

from vptsp_core.method.inputs import positive


def umap_plane(vectors: np.ndarray) -> np.ndarray:
    """Map vectors (N, d) to the plane by UMAP (McInnes et al., 2018) with the cosine distance: (N, 2) float32.

    The same vectors give the same map. UMAP compiles for about twenty seconds in the first call of a process.
    Up to three vectors are too few for UMAP and are put on a line.
    """
    if len(vectors) <= 3:
        return np.stack([np.arange(len(vectors)), np.zeros(len(vectors))], axis=1).astype(np.float32)
    import umap  # slow to import

    threads = torch.get_num_threads()
    neighbours = min(15, len(vectors) - 1)
    # With a seed, UMAP runs in one thread. n_jobs=1 avoids its warning about that.
    reducer = umap.UMAP(metric="cosine", random_state=0, n_neighbors=neighbours, n_jobs=1)
    try:
        return np.asarray(reducer.fit_transform(vectors), dtype=np.float32)
    finally:
        torch.set_num_threads(threads)  # numba sets it to the number of cores, for torch too


def plane_with_proxies(
    embeddings: np.ndarray, proxies: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Map embeddings (N, d) and proxies {name: (C, d)} together. Return their points: (N, 2) and {name: (C, 2)}."""
    together = [embeddings, *proxies.values()]
    plane = umap_plane(np.concatenate(together))
    points, *marks = np.split(plane, np.cumsum([len(vectors) for vectors in together[:-1]]))
    return points, dict(zip(proxies, marks, strict=True))


def spread_classes(num_classes: int, count: int) -> list[int]:
    """Return ``count`` classes at even distances among ``num_classes``, or all if there are fewer.

    >>> spread_classes(100, 4)
    [0, 33, 66, 99]
    """
    return [int(c) for c in np.linspace(0, num_classes - 1, min(count, num_classes))]


def pick_points(labels: np.ndarray, shown: list[int], limit: int) -> np.ndarray:
    """Choose at most ``limit`` images, those of the classes ``shown`` first. Return their sorted indices, (n,) int64.

    labels (N,) are the images' classes.
    """
    limit = positive("images on a map", limit)
    order = np.random.default_rng(0).permutation(len(labels))
    first = np.isin(labels[order], shown)
    return np.sort(np.concatenate([order[first], order[~first]])[:limit])


def short_name(name: str) -> str:
    """Shorten a class name for a figure: the letter of a glyph, or the words without number and underscores.

    >>> short_name("U+00E5 LATIN SMALL LETTER A WITH RING ABOVE"), short_name("001.Black_footed_Albatross")
    ('å  (U+00E5)', 'Black footed Albatross')
    """
    if name.startswith("U+"):
        code = name.split()[0]
        return f"{chr(int(code[2:], 16))}  ({code})"
    words = re.sub(r"^\d+\.", "", name).replace("_", " ")
    return words if len(words) <= 22 else words[:21].rstrip() + "…"


def proxy_cosines(
    embeddings: np.ndarray, labels: np.ndarray, proxies: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Measure how well proxies represent their classes, by cosines to the centroids of the classes.

    Args:
        embeddings: (N, d), L2-normalised.
        labels: (N,) int. Each of the labels 0 to C-1 occurs.
        proxies: {name: (C, d)}, with rows of any length.

    Returns:
        {name: mean cosine to the ``own centroid``, to the ``nearest other``, and their difference, the ``margin``}.
    """
    count = int(labels.max()) + 1
    centroids = _unit(np.stack([embeddings[labels == label].mean(0) for label in range(count)]))
    measured = {}
    for name, vectors in proxies.items():
        cosines = _unit(vectors) @ centroids.T
        own = float(cosines.diagonal().mean())
        np.fill_diagonal(cosines, -np.inf)
        other = float(cosines.max(1).mean())
        measured[name] = {"own centroid": own, "nearest other": other, "margin": own - other}
    return measured


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
