"""The index of an image folder, as a folder on disk: `update` writes it and `search` reads it.

``index.safetensors`` holds the embeddings and the table of paths (name under the indexed folder, size, time of
modification). Its header names the model and has the checksums. The search is exact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from vptsp_core.errors import DataError, VptspError
from vptsp_core.method.neighbours import nearest_neighbours
from vptsp_core.system.files import write_bytes
from vptsp_core.system.seals import sealed, unsealed

FORMAT, HEADER, FILE = 3, "vptsp_index", "index.safetensors"
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
        place: the folder of the index.
    """

    root: str
    names: Sequence[str]
    stats: np.ndarray
    embeddings: np.ndarray
    model: dict[str, Any]
    place: Path = Path()

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k nearest images of each query (Q, d): cosines (Q, k) float32 and places (Q, k), best first.

        If the index has fewer than k images, the last places are -1. Raises VptspError if k < 1.
        """
        scores, places = nearest_neighbours(torch.from_numpy(queries), self.embeddings, k)
        return scores.numpy(), places.numpy()

    def write(self, place: Path) -> ImageIndex:
        """Write the table and the embeddings into the folder ``place``; return the index as it is stored."""
        tensors: dict[str, np.ndarray] = {
            "embeddings": np.ascontiguousarray(self.embeddings, np.float32),
            "stats": np.ascontiguousarray(self.stats, np.int64),
            "names": np.frombuffer(b"\0".join(map(os.fsencode, self.names)), np.uint8),
        }
        header = sealed({"format": FORMAT, "root": self.root, "model": self.model}, tensors)
        write_bytes(place / FILE, safetensors.numpy.save(tensors, {HEADER: json.dumps(header)}))
        return replace(self, place=place)


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
    return ImageIndex(header["root"], names, tensors["stats"], tensors["embeddings"], header["model"], place)


def same_model(index: ImageIndex, checksum: str) -> None:
    """Raise VptspError if the embeddings of the index were made by a model with another checksum."""
    if index.model["checksum"] != checksum:
        raise VptspError(
            f"index {index.place}: its embeddings are of another model ({index.model['path']}); give that one with "
            "--model, or make an index of this one elsewhere with --to"
        )
