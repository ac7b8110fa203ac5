"""A folder of images as an index on the disk: what `update` writes and `search` reads.

The index is a folder of its own. ``index.safetensors`` holds the embeddings and the table of paths (names under the
indexed folder, sizes, times of modification); its header names the model and has the checksums. Beyond `EXACT_UP_TO`
images, ``index.faiss`` beside it is a graph that faiss searches instead of every row: HNSW (Malkov and Yashunin, TPAMI
2020). How widely each search looks (``ef``) is chosen when the graph is built, by its recall: of the ten images that
are exactly nearest to an image of the index, the share that is found. Nothing is pickled.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import shlex
import warnings
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
from vptsp_core.method.neighbours import nearest_neighbours
from vptsp_core.system.files import write_bytes
from vptsp_core.system.seals import digest, sealed, unsealed

FORMAT, HEADER, FILE, GRAPH = 3, "vptsp_index", "index.safetensors", "index.faiss"
# images; an exact search of so many takes a busy core 2 s for one query, 41 ms each for 64 (d = 192)
EXACT_UP_TO = 200_000
LINKS, BUILD_EF = 32, 200  # links of a node, and how widely its neighbours are looked for
WIDTHS = (64, 128, 256, 512, 1024)  # the first that reaches the recall is taken, else the last
ENOUGH, ASKED, K = 0.99, 256, 10  # recall to reach, of so many queries and neighbours


@dataclass(frozen=True)
class ImageIndex:
    """Embeddings of N images and where these are.

    Attributes:
        root: the folder whose images these are.
        names: N paths under it, with ``/``, in order.
        stats: (N, 2) int64: size and time of modification (ns) of each file when it was embedded.
        embeddings: (N, d) float32, L2-normalised.
        model: ``path`` and ``weights`` to load it from, and the ``checksum`` of the embedder.
        graph: ``digest`` of its file, ``ef`` and measured ``recall``; empty where search is exact.
        place: the folder that it was read from.
    """

    root: str
    names: Sequence[str]
    stats: np.ndarray
    embeddings: np.ndarray
    model: dict[str, Any]
    graph: dict[str, Any] = field(default_factory=dict)
    place: Path | None = None

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest images of each query (Q, d): cosines (Q, k) float32 and places (Q, k) int64, best first.

        Exact, or by the graph where there is one and faiss is installed. Where there are fewer images than k, or the
        graph finds fewer, the last places are -1. Raises DataError where the graph is missing or damaged.
        """
        faiss = faiss_installed()
        if self.graph and faiss:
            return _search(self._faiss, queries, k, self.graph["ef"])
        if len(self.names) > EXACT_UP_TO and not faiss:
            _warn_absent(len(self.names))
        backend = "faiss" if faiss else "torch"
        scores, places = nearest_neighbours(torch.from_numpy(queries), self.embeddings, k, backend=backend)
        return scores.numpy(), places.numpy()

    @cached_property
    def _faiss(self) -> Any:
        assert self.place is not None
        path = self.place / GRAPH
        if not self.graph_is_whole():
            raise DataError(f"graph {path}: missing or damaged; {_again(path)}")
        return importlib.import_module("faiss").read_index(str(path))

    def graph_is_whole(self) -> bool:
        """Whether the graph that so many images are searched by is there, undamaged; True where none is needed."""
        if len(self.names) <= EXACT_UP_TO or not faiss_installed():
            return True
        path = None if self.place is None else self.place / GRAPH
        return bool(path and self.graph and path.is_file() and digest(path) == self.graph["digest"])

    def write(self, place: Path, graph: bool = True) -> ImageIndex:
        """Put it at ``place``, with its graph where it needs one; returns it as it is there."""
        found: dict[str, Any] = {}
        if graph and len(self.names) > EXACT_UP_TO and faiss_installed():
            built, found = _build(self.embeddings)
            content = importlib.import_module("faiss").serialize_index(built).tobytes()  # what faiss.read_index reads
            found["digest"] = digest(content)
            write_bytes(place / GRAPH, content)
        names = b"\0".join(os.fsencode(name) for name in self.names)
        tensors: dict[str, np.ndarray] = {
            "embeddings": np.ascontiguousarray(self.embeddings, np.float32),
            "stats": np.ascontiguousarray(self.stats, np.int64),
            "names": np.frombuffer(names, np.uint8),
        }
        header = sealed({"format": FORMAT, "root": self.root, "model": self.model, "graph": found}, tensors)
        write_bytes(place / FILE, safetensors.numpy.save(tensors, {HEADER: json.dumps(header)}))
        if not found:
            (place / GRAPH).unlink(missing_ok=True)
        return replace(self, graph=found, place=place)


def read_index(place: str | Path) -> ImageIndex:
    """The index in the folder ``place``. Raises DataError where there is none, it is damaged or of another format."""
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
            raise ValueError(f"its format {header['format']!r} is not known here")
        header = unsealed(header, tensors)
    except Exception as error:  # of a library in Rust, of JSON, of what the header lacks
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"index {path}: unreadable ({reason}); {_again(path)}") from error
    names = [os.fsdecode(name) for name in tensors["names"].tobytes().split(b"\0")]
    about = {key: header[key] for key in ("root", "model", "graph")}
    return ImageIndex(names=names, stats=tensors["stats"], embeddings=tensors["embeddings"], place=place, **about)


def same_model(index: ImageIndex, checksum: str) -> None:
    """Raises VptspError for a model whose embeddings are not those of the index."""
    if index.model["checksum"] != checksum:
        raise VptspError(
            f"index {index.place}: its embeddings are of another model ({index.model['path']}); give that one with "
            "--model, or make an index of this one elsewhere with --to"
        )


def faiss_installed() -> bool:
    """Whether faiss is; without it every search is exact."""
    return importlib.util.find_spec("faiss") is not None


@functools.cache
def _warn_absent(images: int) -> None:
    warnings.warn(f"faiss is not installed: all {images:,} images are compared; pip install faiss-cpu", stacklevel=3)


def _again(path: Path) -> str:
    place = shlex.quote(str(path.parent))
    return f"delete that file and call index again: python -m vptsp_core index DIR --model RUN --to {place}"


def _build(embeddings: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """A graph over unit rows (N, d) float32, and what it reaches: ``ef`` and its measured ``recall``."""
    faiss = importlib.import_module("faiss")
    built = faiss.IndexHNSWFlat(embeddings.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    built.hnsw.efConstruction = BUILD_EF
    built.add(embeddings)
    chosen = np.random.default_rng(0).choice(len(embeddings), min(ASKED, len(embeddings)), replace=False)
    exact = nearest_neighbours(torch.from_numpy(embeddings[chosen]), embeddings, K + 1)[1].numpy()
    others = [np.setdiff1d(row, own) for row, own in zip(exact, chosen)]
    ef, recall = WIDTHS[0], 0.0
    for ef in WIDTHS:
        found = _search(built, embeddings[chosen], K + 1, ef)[1]
        recall = float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, others, strict=True)]))
        if recall >= ENOUGH:
            break
    return built, {"ef": ef, "recall": recall}


def _search(built: Any, queries: np.ndarray, k: int, ef: int) -> tuple[np.ndarray, np.ndarray]:
    # not by search(params=...): faiss.contrib.torch_utils, once imported, replaces search by one without it
    built.hnsw.efSearch = max(ef, 2 * k)
    scores, places = built.search(np.ascontiguousarray(queries, np.float32), k)
    return scores, places
