"""A folder of images as an index on the disk: embedded once, brought up to date, searched by image.

The index is a folder of its own. ``index.safetensors`` holds the embeddings, the images' names under the indexed
folder, their sizes and times, and in its header which model made them; beyond `graph.EXACT_UP_TO` images a faiss graph
lies beside it. It is replaced whole, by renaming, once all is embedded; until then what is done lies in parts, from
which a call that comes after one that was stopped goes on. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from vptsp_core.deploy import graph
from vptsp_core.errors import DataError, VptspError
from vptsp_core.method.neighbours import nearest_neighbours
from vptsp_core.system.files import write_bytes
from vptsp_core.system.seals import check_tensors, digest, sealed_header, unsealed

FORMAT, HEADER, FILE = 2, "vptsp_index", "index.safetensors"


@dataclass(frozen=True)
class ImageIndex:
    """Embeddings of N images and what they belong to.

    Attributes:
        root: the folder whose images these are.
        names: N paths under it, with ``/``, in order.
        stats: (N, 4) int64: what `update.images_in` said of each file when it was embedded.
        embeddings: (N, d) float32, L2-normalised.
        model: ``path`` and ``weights`` to load it from, and the ``checksum`` of the embedder.
        searched: the graph's ``file`` and its ``digest``, ``ef`` and measured ``recall``; empty where search is exact.
        place: the folder that it was read from.
    """

    root: str
    names: Sequence[str]
    stats: np.ndarray
    embeddings: np.ndarray
    model: dict[str, Any]
    searched: dict[str, Any] = field(default_factory=dict)
    place: Path | None = None

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest images of each query (Q, d): cosines (Q, k) float32 and places (Q, k) int64, best first.

        Exact, or by the graph where there is one and faiss is installed (`graph`). Where there are fewer images than
        k, or the graph finds fewer, the last places are -1.
        """
        if self.searched and graph.installed():
            return graph.search(self._graph, queries, k, self.searched["ef"])
        if len(self.names) > graph.EXACT_UP_TO:
            graph.warn_absent(len(self.names))
        backend = "faiss" if graph.installed() else "torch"
        scores, places = nearest_neighbours(torch.from_numpy(queries), self.embeddings, k, backend=backend)
        return scores.numpy(), places.numpy()

    @cached_property
    def _graph(self) -> Any:
        assert self.place is not None
        return graph.read(self.place / self.searched["file"], self.embeddings.shape, self.searched["digest"])

    def graph_is_whole(self) -> bool:
        """Whether the graph that so many images are searched by is there, undamaged; True where none is needed."""
        if len(self.names) <= graph.EXACT_UP_TO or not graph.installed():
            return True
        if not self.searched or self.place is None:
            return False
        path = self.place / self.searched["file"]
        return path.is_file() and digest(path) == self.searched["digest"]

    def write(self, place: Path, old: ImageIndex | None = None) -> ImageIndex:
        """Put it at ``place`` instead of ``old``, which is there; returns it with the graph that it then has.

        Raises:
            VptspError: the place cannot be written.
        """
        searched: dict[str, Any] = {}
        if len(self.names) > graph.EXACT_UP_TO and graph.installed():
            name = f"graph-{hashlib.sha256(self.embeddings.tobytes()).hexdigest()[:16]}.faiss"
            if old is not None and old.searched.get("file") == name and old.graph_is_whole():
                searched = old.searched  # the rows are the same
            else:
                made, found = graph.build(self.embeddings)
                content = graph.to_bytes(made)
                write_bytes(place / name, content)
                searched = {"file": name, "digest": digest(content), **found}
        index = ImageIndex(self.root, self.names, self.stats, self.embeddings, self.model, searched, place)
        write_rows(place / FILE, index)
        for other in place.glob("graph-*.faiss"):
            if other.name != searched.get("file"):
                with contextlib.suppress(OSError):
                    other.unlink()
        return index


def write_rows(path: Path, index: ImageIndex) -> None:
    """One file with the rows of ``index``: the index itself, or a part of one that is being made."""
    names = b"\0".join(os.fsencode(name) for name in index.names)
    tensors: dict[str, np.ndarray] = {
        "embeddings": np.ascontiguousarray(index.embeddings, np.float32),
        "stats": np.ascontiguousarray(index.stats, np.int64),
        "names": np.frombuffer(names, np.uint8),
    }
    header = {"format": FORMAT, "root": index.root, "model": index.model, "searched": index.searched}
    write_bytes(path, safetensors.numpy.save(tensors, {HEADER: json.dumps(sealed_header(header, tensors))}))


def read_rows(path: Path) -> ImageIndex:
    """The inverse of `write_rows`.

    Raises:
        DataError: damaged, not an index, or of another format.
    """
    try:
        with safetensors.safe_open(path, "np") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            if header["format"] != FORMAT:
                raise DataError(f"index {path}: format {header['format']!r} is not known here; {_again(path)}")
            embeddings, stats, names = (file.get_tensor(name) for name in ("embeddings", "stats", "names"))
        check_tensors(unsealed(header), {"embeddings": embeddings, "stats": stats, "names": names})
        index = ImageIndex(
            str(header["root"]), [os.fsdecode(name) for name in names.tobytes().split(b"\0")], stats, embeddings,
            dict(header["model"]), dict(header["searched"]), path.parent,
        )  # fmt: skip
        fits = embeddings.ndim == 2 and stats.shape == (len(embeddings), 4) and len(index.names) == len(embeddings)
        if not fits or embeddings.dtype != np.float32 or not np.isfinite(embeddings).all():
            raise ValueError("its tensors do not belong together")
        if {"path", "weights", "checksum"} - index.model.keys() or (
            index.searched and {"file", "digest", "ef"} - index.searched.keys()
        ):
            raise ValueError("its header is incomplete")
    except DataError:
        raise
    except Exception as error:  # of a library in Rust, of JSON, of what the header lacks
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"index {path}: unreadable ({reason}); {_again(path)}") from error
    return index


def _again(path: Path) -> str:
    place = shlex.quote(str(path.parent))
    return f"delete that file and call index again: python -m vptsp_core index DIR --model RUN --to {place}"


def read_index(place: str | Path) -> ImageIndex:
    """The index in the folder ``place``.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = Path(place).expanduser() / FILE
    if not path.is_file():
        raise DataError(
            f"{place} holds no index; make one with: python -m vptsp_core index DIR --model RUN --to {place}"
        )
    return read_rows(path)


def same_model(index: ImageIndex, checksum: str, place: str | Path) -> None:
    """Refuse a model whose embeddings are not those of the index.

    Raises:
        VptspError: naming both.
    """
    if index.model["checksum"] != checksum:
        raise VptspError(
            f"index {place}: its embeddings are of another model ({index.model['path']}); give that one with --model, "
            "or make an index of this one elsewhere with --to"
        )
