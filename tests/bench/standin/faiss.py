"""Stands in for faiss where it is not installed: exact search by torch, as much of it as the released metrics call."""

from __future__ import annotations

import numpy as np
import torch

ROWS = 512  # queries at a time


class IndexFlatL2:
    """Exact search by squared Euclidean distance."""

    def __init__(self, dim: int) -> None:
        self.rows = torch.empty(0, dim)

    def add(self, rows: np.ndarray) -> None:
        """Rows (n, dim) float32 to search in."""
        self.rows = torch.cat([self.rows, torch.from_numpy(rows).to(self.rows.device)])

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances and indices of the k nearest rows of each query, both (n, k)."""
        lengths, found = self.rows.square().sum(1), []
        for part in torch.from_numpy(queries).to(self.rows.device).split(ROWS):
            distances = part.square().sum(1, keepdim=True) + lengths - 2 * part @ self.rows.T
            found.append(distances.topk(k, largest=False))
        distances, indices = (torch.cat(each).cpu().numpy() for each in zip(*found, strict=True))
        return distances, indices


class IndexFlatIP(IndexFlatL2):
    """The same of rows of length 1, which it is given: the nearest have the largest inner products."""


class StandardGpuResources:
    """There is nothing to set aside."""


def index_cpu_to_gpu(resources: StandardGpuResources, device: int, index: IndexFlatL2) -> IndexFlatL2:
    """The index, its rows on that GPU."""
    index.rows = index.rows.to(f"cuda:{device}")
    return index


def omp_set_num_threads(count: int) -> None:
    """torch keeps its own number, which is the same."""
