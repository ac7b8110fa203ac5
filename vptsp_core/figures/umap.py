"""Maps of an embedding space (UMAP), the choice of what to show on them, and how well proxies stand for classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from vptsp_core.errors import VptspError
from vptsp_core.method.neighbours import numbered, positive


def umap_plane(vectors: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """UMAP (McInnes et al., 2018) of vectors (N, d) into the plane, by cosine: (N, 2) float32.

    The same vectors and seed give the same map. The first call of a process compiles for some twenty seconds. Up to
    three vectors, too few for UMAP, are put on a line. Raises VptspError for NaN and infinity.
    """
    if bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
        raise VptspError(f"a map of embeddings: NaN or infinity in {numbered(bad, vectors)}; leave them out")
    if len(vectors) <= 3:
        return np.stack([np.arange(len(vectors)), np.zeros(len(vectors))], axis=1).astype(np.float32)
    import umap  # slow to import, and only needed here

    threads = torch.get_num_threads()
    neighbours = min(15, len(vectors) - 1)
    # with a seed UMAP runs in one thread; asking for one spares its warning
    fitted = umap.UMAP(metric="cosine", random_state=seed, n_neighbors=neighbours, n_jobs=1)
    try:
        return np.asarray(fitted.fit_transform(vectors), dtype=np.float32)
    finally:
        torch.set_num_threads(threads)  # numba leaves one a core behind, for torch too


def plane_with_proxies(
    embeddings: np.ndarray, proxies: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One map (`umap_plane`) of embeddings (N, d) and proxies {name: (C, d)} together: their places, each as given."""
    together = [embeddings, *proxies.values()]
    plane = umap_plane(np.concatenate(together))
    points, *marks = np.split(plane, np.cumsum([len(vectors) for vectors in together[:-1]]))
    return points, dict(zip(proxies, marks, strict=True))


def spread_classes(num_classes: int, count: int) -> list[int]:
    """``count`` classes at even distances among ``num_classes`` (all of them, if there are fewer).

    >>> spread_classes(100, 4)
    [0, 33, 66, 99]
    """
    return [int(c) for c in np.linspace(0, num_classes - 1, min(count, num_classes))]


def pick_points(labels: np.ndarray, shown: list[int], limit: int) -> np.ndarray:
    """Places of at most ``limit`` images, (n,) int64, sorted: those of the classes ``shown`` first of all, then any
    others. labels (N,) are the images' classes.
    """
    limit = positive("images on a map", limit)
    order = np.random.default_rng(0).permutation(len(labels))
    first = np.isin(labels[order], shown)
    return np.sort(np.concatenate([order[first], order[~first]])[:limit])


def short_name(name: str) -> str:
    """A class name for a legend: the letter itself for a glyph, the words alone for "001.Black_footed_Albatross".

    >>> short_name("U+00E5 LATIN SMALL LETTER A WITH RING ABOVE"), short_name("001.Black_footed_Albatross")
    ('å  (U+00E5)', 'Black footed Albatross')
    """
    if name.startswith("U+"):
        code = name.split()[0]
        return f"{chr(int(code[2:], 16))}  ({code})"
    words = name.split(".", 1)[-1].replace("_", " ")
    return words if len(words) <= 22 else words[:21].rstrip() + "…"


def proxy_cosines(
    embeddings: np.ndarray, labels: np.ndarray, proxies: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """How well proxies stand for their classes: mean cosine to the own class's centroid and to the nearest other's.

    Args:
        embeddings: (N, d), L2-normalised; labels: (N,), every one of 0..C-1.
        proxies: {name: (C, d)}, of any length.

    Returns:
        For each name ``own centroid``, ``nearest other`` and ``margin``, the first minus the second.
    """
    count = int(labels.max()) + 1
    centroids = _unit(np.stack([embeddings[labels == label].mean(0) for label in range(count)]))
    found = {}
    for name, vectors in proxies.items():
        cosines = _unit(vectors) @ centroids.T
        own = float(cosines.diagonal().mean())
        other = float(np.where(np.eye(count, dtype=bool), -np.inf, cosines).max(1).mean())
        found[name] = {"own centroid": own, "nearest other": other, "margin": own - other}
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
