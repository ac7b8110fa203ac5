"""The index of an image folder, as a folder on disk: `update` writes it and `search` reads it.

``index.safetensors`` holds the embeddings and the table of paths (name under the indexed folder, size, time of
modification). Its header names the model and has the checksums. Beyond `EXACT_UP_TO` images, ``index.faiss`` beside it
is an HNSW graph (Malkov and Yashunin, TPAMI 2020), which faiss searches instead of every row. The width of its search
(``ef``) is chosen when the graph is built, by the recall: the share of the ten exact neighbours that the graph finds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from vptsp_core.errors import DataError, VptspError
from vptsp_core.method.inputs import positive
from vptsp_core.method.neighbours import nearest_neighbours
from vptsp_core.system.files import write_bytes
from vptsp_core.system.seals import digest, sealed, unsealed

FORMAT, HEADER, FILE, GRAPH = 3, "vptsp_index", "index.safetensors", "index.faiss"
EXACT_UP_TO = 200_000  # images; an exact search of them takes half a second on one core
LINKS, BUILD_EF = 32, 200  # links per node, and the width of the search for them
WIDTHS = (64, 128, 256, 512, 1024)  # the first with enough recall is taken, otherwise the last
ENOUGH, ASKED, K = 0.99, 256, 10  # the recall to reach, measured on this many queries and neighbours
AGAIN = "delete that file and call index again"


@dataclass(frozen=True)
class ImageIndex:
    """The embeddings and paths of N images.

    Attributes:
        root: the indexed folder.
        names: N paths under it, with ``/`` between folders, sorted.
        stats: (N, 2) int64: size and time of modification (ns) of each file when it was embedded.
        embeddings: (N, d) float32, L2-normalised.
        model: ``path`` and ``weights`` to load it from, and the ``checksum`` of the embedder.
        graph: ``digest`` of its file, ``ef`` and measured ``recall``; empty if the search is exact.
        place: the folder of the index.
    """

    root: str
    names: Sequence[str]
    stats: np.ndarray
    embeddings: np.ndarray
    model: dict[str, Any]
    graph: dict[str, Any] = field(default_factory=dict)
    place: Path = Path()

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k nearest images of each query (Q, d): cosines (Q, k) float32 and places (Q, k), best first.

        If fewer than k are found, the last places are -1. The search is exact, unless the index has a graph and faiss
        is installed. Raises VptspError if k < 1, and DataError if the graph is missing or damaged.
        """
        k = positive("k", k)
        if self.graph and _faiss():
            return _search(self._graph_on_disk, queries, k, self.graph["ef"])
        scores, places = nearest_neighbours(torch.from_numpy(queries), self.embeddings, k)
        return scores.numpy(), places.numpy()

    @cached_property
    def _graph_on_disk(self) -> Any:
        """The graph. Raises DataError: it is missing or damaged."""
        path = self.place / GRAPH
        if not self.graph_is_whole():
            raise DataError(f"graph {path}: missing or damaged; {AGAIN}")
        return _faiss().read_index(str(path))

    def graph_is_whole(self) -> bool:
        """Return whether the graph exists and is undamaged."""
        path = self.place / GRAPH
        return bool(self.graph) and path.is_file() and digest(path) == self.graph["digest"]

    def write(self, place: Path) -> ImageIndex:
        """Write the table and the embeddings into the folder ``place``; return the index as it is stored."""
        tensors: dict[str, np.ndarray] = {
            "embeddings": np.ascontiguousarray(self.embeddings, np.float32),
            "stats": np.ascontiguousarray(self.stats, np.int64),
            "names": np.frombuffer(b"\0".join(map(os.fsencode, self.names)), np.uint8),
        }
        header = sealed({"format": FORMAT, "root": self.root, "model": self.model, "graph": self.graph}, tensors)
        write_bytes(place / FILE, safetensors.numpy.save(tensors, {HEADER: json.dumps(header)}))
        if not self.graph:
            (place / GRAPH).unlink(missing_ok=True)  # of a larger index, or of one that was made with faiss
        return replace(self, place=place)

    def write_graph(self) -> ImageIndex:
        """Build the graph of a written index, and return the index with it.

        The index is returned unchanged if it has at most `EXACT_UP_TO` images, if faiss is not installed, or if its
        graph is whole already.
        """
        faiss = _faiss()
        if not faiss or len(self.names) <= EXACT_UP_TO or self.graph_is_whole():
            return self
        built, about = _build(faiss, self.embeddings)
        content = faiss.serialize_index(built).tobytes()  # faiss.read_index reads this format
        write_bytes(self.place / GRAPH, content)
        return replace(self, graph=about | {"digest": digest(content)}).write(self.place)


def read_index(place: str | Path) -> ImageIndex:
    """Read the index in the folder ``place``. Raises DataError if it is missing, damaged or of another format."""
    place = Path(place).expanduser().absolute()
    path = place / FILE
    if not path.is_file():
        raise DataError(
            f"{place} holds no index; make one with: python -m vptsp_core index DIR --model RUN --to {place}"
        )
    try:
        with safetensors.safe_open(path, "np") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            tensors = {name: file.get_tensor(name) for name in ("embeddings", "stats", "names")}
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']!r} is unknown")
        header = unsealed(header, tensors)
    except Exception as error:  # safetensors and json raise errors of many kinds
        raise DataError(f"index {path}: unreadable ({error}); {AGAIN}") from error
    names = [os.fsdecode(name) for name in tensors["names"].tobytes().split(b"\0")]
    about = {key: header[key] for key in ("root", "model", "graph")}
    return ImageIndex(names=names, stats=tensors["stats"], embeddings=tensors["embeddings"], place=place, **about)


def same_model(index: ImageIndex, checksum: str) -> None:
    """Raise VptspError if the embeddings of the index were made by a model with another checksum."""
    if index.model["checksum"] != checksum:
        raise VptspError(
            f"index {index.place}: its embeddings are of another model ({index.model['path']}); give that one with "
            "--model, or make an index of this one elsewhere with --to"
        )


def _faiss() -> Any:
    """Return the module faiss, or None if it is not installed. Every search is then exact."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def _build(faiss: Any, embeddings: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """Build a graph over unit rows (N, d) float32; return it with its ``ef`` and measured ``recall``."""
    built = faiss.IndexHNSWFlat(embeddings.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    built.hnsw.efConstruction = BUILD_EF
    built.add(embeddings)
    chosen = np.random.default_rng(0).choice(len(embeddings), min(ASKED, len(embeddings)), replace=False)
    exact = nearest_neighbours(torch.from_numpy(embeddings[chosen]), embeddings, K + 1)[1].numpy()
    others = [np.setdiff1d(row, own) for row, own in zip(exact, chosen)]
    ef, recall = WIDTHS[0], 0.0
    for ef in WIDTHS:
        nearest = _search(built, embeddings[chosen], K + 1, ef)[1]
        recall = float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(nearest, others, strict=True)]))
        if recall >= ENOUGH:
            break
    return built, {"ef": ef, "recall": recall}


def _search(built: Any, queries: np.ndarray, k: int, ef: int) -> tuple[np.ndarray, np.ndarray]:
    # search(params=...) fails if faiss.contrib.torch_utils was imported: it replaces search by one without params
    built.hnsw.efSearch = max(ef, 2 * k)
    scores, places = built.search(np.ascontiguousarray(queries, np.float32), k)
    return scores, places
