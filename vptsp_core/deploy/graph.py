"""Beyond some hundred thousand images a graph is searched instead of every row: HNSW, by faiss.

Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
graphs" (TPAMI 2020). It is approximate, and by how much depends on the images. So how widely each search looks
(``ef``) is set when the graph is built, by its recall: of the ten images that are exactly nearest to an image of the
index, itself left out, the share that is found. The first of `WIDTHS` that reaches 0.99 is taken, else the last.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vptsp_core.errors import DataError
from vptsp_core.method.neighbours import nearest_neighbours
from vptsp_core.system.seals import digest

# images; an exact search of so many takes a busy core 2 s for one query, 41 ms each for 64 (d = 192)
EXACT_UP_TO = 200_000
LINKS, BUILD_EF = 32, 200  # links of a node, and how widely its neighbours are looked for
WIDTHS = (64, 128, 256, 512, 1024)
ENOUGH, ASKED, K = 0.99, 256, 10  # recall to reach, of so many queries and neighbours


def installed() -> bool:
    """Whether faiss is."""
    return importlib.util.find_spec("faiss") is not None


@functools.cache
def warn_absent(images: int) -> None:
    """Say once that the search is exact for want of faiss."""
    warnings.warn(f"faiss is not installed: all {images:,} images are compared; pip install faiss-cpu", stacklevel=2)


def build(embeddings: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """A graph over unit rows (N, d) float32, and what it reaches: ``ef`` and its measured ``recall``."""
    faiss = importlib.import_module("faiss")
    made = faiss.IndexHNSWFlat(embeddings.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    made.hnsw.efConstruction = BUILD_EF
    made.add(embeddings)
    chosen = np.random.default_rng(0).choice(len(embeddings), min(ASKED, len(embeddings)), replace=False)
    queries = embeddings[chosen]
    exact = nearest_neighbours(torch.from_numpy(queries), embeddings, K + 1)[1].numpy()
    others = [np.setdiff1d(row, own) for row, own in zip(exact, chosen)]
    ef, recall = WIDTHS[0], 0.0
    for ef in WIDTHS:
        found = search(made, queries, K + 1, ef)[1]
        recall = float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, others, strict=True)]))
        if recall >= ENOUGH:
            break
    return made, {"ef": ef, "recall": recall}


def search(made: Any, queries: np.ndarray, k: int, ef: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (Q, k) and places (Q, k), best first; places are -1 where fewer were found."""
    # not by search(params=...): whoever imported faiss.contrib.torch_utils has a search without it
    made.hnsw.efSearch = max(ef, 2 * k)
    scores, places = made.search(np.ascontiguousarray(queries, np.float32), k)
    return scores, places


def to_bytes(made: Any) -> bytes:
    """What `read` reads."""
    content: bytes = importlib.import_module("faiss").serialize_index(made).tobytes()
    return content


def read(path: Path, shape: tuple[int, ...], checksum: str) -> Any:
    """A graph over embeddings of that shape, from a file with that checksum (`system.seals.digest`).

    Raises:
        DataError: no such file, or not that graph.
    """
    try:
        content = path.read_bytes()
        if digest(content) != checksum:
            raise ValueError("its content does not fit its checksum")
        made = importlib.import_module("faiss").deserialize_index(np.frombuffer(content, np.uint8))
        if (made.ntotal, made.d) != tuple(shape) or not hasattr(made, "hnsw"):
            raise ValueError(f"it holds {made.ntotal} rows of {made.d}")
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"graph {path}: unreadable ({reason}); delete that file and call index again") from error
    return made
