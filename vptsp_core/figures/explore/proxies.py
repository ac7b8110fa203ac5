"""The proxies of the training classes, beside the images nearest to them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from vptsp_core.figures.umap import proxy_cosines
from vptsp_core.method.neighbours import nearest_neighbours
from vptsp_core.paper.figure4 import proxies_of
from vptsp_core.runs.folder import Run, learned_weights


def kept_proxies(run: Run) -> dict[str, np.ndarray]:
    """The proxies that a finished run keeps, of length 1: O, P and Q (`proxies_of`) of vptsp, O alone of the other
    methods that train, none of the frozen backbone: {name: (C, d)}.
    """
    state = learned_weights(run.path, run.record)
    if "proxies.state" in state:
        return proxies_of(state, run.config.alpha)
    if "proxies.bias" not in state:
        return {}
    return {"O": torch.nn.functional.normalize(state["proxies.bias"], dim=1).numpy()}


def nearest_images(
    proxies: dict[str, np.ndarray], embeddings: np.ndarray, k: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The ``k`` images nearest to every proxy: {name: (cosines (C, k), places (C, k))}, of proxies {name: (C, d)} and
    the training images' embeddings (N, d).
    """
    found = {name: nearest_neighbours(vectors, embeddings, k) for name, vectors in proxies.items()}
    return {name: (scores.numpy(), places.numpy()) for name, (scores, places) in found.items()}


def summary(
    proxies: dict[str, np.ndarray], embeddings: np.ndarray, labels: np.ndarray, near: dict[str, np.ndarray]
) -> pd.DataFrame:
    """How well each kind of proxy stands for its class, over all classes.

    Args:
        proxies: {name: (C, d)}; embeddings (N, d) and labels (N,): the training images.
        near: {name: (C, k)} places of the nearest images (`nearest_images`).

    Returns:
        One row a kind: ``nearest image right`` and ``nearest k right``, in percent, for the k given; mean cosines to
        the ``own centroid`` and to that of the ``nearest other`` class.
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
