"""The proxies of the training classes, and the images nearest to them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vptsp_core.figures.umap import proxy_cosines
from vptsp_core.method.neighbours import nearest_neighbours


def nearest_images(
    proxies: dict[str, np.ndarray], embeddings: np.ndarray, k: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Find the ``k`` images nearest to every proxy: {name: (cosines (C, k), indices of the images (C, k))}.

    proxies are {name: (C, d)}, embeddings (N, d) those of the training images.
    """
    nearest = {name: nearest_neighbours(vectors, embeddings, k) for name, vectors in proxies.items()}
    return {name: (scores.numpy(), places.numpy()) for name, (scores, places) in nearest.items()}


def summary(
    proxies: dict[str, np.ndarray], embeddings: np.ndarray, labels: np.ndarray, near: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Measure how well each kind of proxy represents its class, over all classes.

    Args:
        proxies, embeddings: as for `nearest_images`.
        labels: (N,), the classes of the training images.
        near: {name: (C, k)}, the indices of the nearest images from `nearest_images`.

    Returns:
        One row per kind: ``nearest image right`` and ``nearest k right``, in percent, and the mean cosines to the
        ``own centroid`` and to the ``nearest other`` (`umap.proxy_cosines`).
    """
    rows = {}
    cosines = proxy_cosines(embeddings, labels, proxies)
    for name, places in near.items():
        right = labels[places] == np.arange(len(places))[:, None]
        rows[name] = {
            "nearest image right": 100 * right[:, 0].mean(),
            f"nearest {places.shape[1]} right": 100 * right.mean(),
            "own centroid": cosines[name]["own centroid"],
            "nearest other": cosines[name]["nearest other"],
        }
    return pd.DataFrame(rows).T
