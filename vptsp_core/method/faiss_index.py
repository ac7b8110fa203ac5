"""A flat faiss index, an optional backend of the search in `vptsp_core.method.neighbours`. It is exact."""

from __future__ import annotations

import contextlib
import functools
import importlib
import subprocess
import sys
import warnings
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from vptsp_core.errors import VptspError

BACKENDS = ("torch", "faiss")
GPU_MAX_K = 2048  # the longest list that faiss finds on a GPU


def check_backend(name: str) -> None:
    """Check the name of a backend. Raises VptspError if it is unknown or not installed."""
    if name not in BACKENDS:
        raise VptspError(f"backend {name!r} is unknown; choose 'torch' or 'faiss'")
    if name == "faiss":
        _faiss()


class FlatIndex:
    """A search by inner product among ``items``, on their GPU if faiss is built for it, otherwise on the CPU.

    Args:
        items: (M, d) float32, unit rows.
        deepest: the longest list that will be searched for.

    Attributes:
        usable: False from the moment that a GPU index cannot be used (``deepest`` above 2,048, no kernels for the GPU,
            no memory). One warning says so, and the caller searches in another way.

    Raises:
        VptspError: faiss is not installed.
        RuntimeError: an index on the CPU failed.
    """

    def __init__(self, items: Tensor, deepest: int) -> None:
        faiss = _faiss()
        self.usable = True
        self._on_gpu = items.is_cuda and hasattr(faiss, "StandardGpuResources")
        self._index = faiss.IndexFlatIP(items.shape[1])
        try:
            if self._on_gpu:
                card = items.device.index or 0
                if deepest > GPU_MAX_K:
                    raise RuntimeError(f"more than {GPU_MAX_K:,} neighbours")
                if not _gpu_works(card):
                    raise RuntimeError("faiss has no kernels for this card")
                self._index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), card, self._index)
            self._index.add(items.cpu().numpy())
        except RuntimeError as error:
            self._decline(error)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
        """Return scores (c, k), best first, and indices (c, k) for queries (c, d), on their device.

        Returns None if the GPU index failed: it is no longer `usable`.
        Raises RuntimeError if an index on the CPU failed.
        """
        try:
            answer = self._index.search(queries.cpu().numpy(), k)
        except RuntimeError as error:
            self._decline(error)
            return None
        scores, indices = (torch.from_numpy(a).to(queries.device) for a in answer)
        return scores, indices

    def _decline(self, error: RuntimeError) -> None:
        if not self._on_gpu:
            raise error
        self.usable = False
        _warn_once(f"faiss cannot search on this GPU ({error}); searching with torch")


def installed() -> str | None:
    """Return the name and version of the installed faiss, such as ``"faiss-gpu 1.15.1"``, or None."""
    for name in ("faiss-gpu", "faiss-cpu", "faiss"):  # the last one is conda's package, for CPU or GPU
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    return None


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        cure = "pip install faiss-cpu (faiss-gpu with an NVIDIA GPU), or use 'torch'"
        raise VptspError(f"backend 'faiss': not installed; {cure}") from None


@functools.cache
def _gpu_works(card: int) -> bool:
    """Try a tiny search in another process, because faiss without kernels for the GPU aborts its process."""
    code = (
        "import faiss, numpy as np; x = np.eye(4, dtype='float32'); r = faiss.StandardGpuResources(); "
        f"i = faiss.index_cpu_to_gpu(r, {card}, faiss.IndexFlatIP(4)); i.add(x); i.search(x, 2)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
