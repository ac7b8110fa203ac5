"""Retrieval metrics on tensors: R@K, MAP@R, R-precision, and the two forms of MAP of the released code.

MAP@R and R-precision are those of Musgrave et al., "A Metric Learning Reality Check" (ECCV 2020). The search
beneath them, and what it promises on precision, ties and memory, is in `neighbours`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vptsp_core.errors import VptspError
from vptsp_core.method.faiss_index import check_backend
from vptsp_core.method.neighbours import as_tensor, nearest_neighbours, numbered, positive, search, unit_rows
from vptsp_core.method.torch_state import in_torch_defaults

__all__ = ["Scores", "nearest_neighbours", "retrieval_metrics"]

INSHOP_RANKS = 50  # the released In-Shop MAP looks at 50 ranks, the largest K of that benchmark
OF_R = ("MAP@R", "MAP@R released", "R-precision")


class Scores(dict[str, float]):
    """Metrics by name, a plain dict, and each query's own values.

    Attributes:
        queries: {"R@1" (if 1 is in ks), and the three of `OF_R`: (N,) float32}, in the order of the queries. A
            metric is the mean of its values; NaN (R = 0) does not count.
    """

    def __init__(self, metrics: Mapping[str, float], queries: dict[str, np.ndarray]) -> None:
        super().__init__(metrics)
        self.queries = queries


@in_torch_defaults
def retrieval_metrics(
    embeddings: Any,
    labels: Any,
    *,
    gallery: Any = None,
    gallery_labels: Any = None,
    ks: int | Sequence[int] = (1, 2, 4, 8),
    backend: str = "torch",
) -> Scores:
    """How well items find others of their class; fractions in [0, 1].

    embeddings (N, d), of any precision, and labels (N,), whole numbers of any values: tensors on any device, arrays or
    tables (of pandas the rows count, not the index). Without a gallery each item searches all the others; it is itself
    left out by its index, so a duplicate of it counts. With gallery (M, d) and gallery_labels (M,) nothing is left out.

    R is the number of (other) gallery items of the query's class, rel_i = 1 if the item at rank i is one of
    them, else 0, and P@i = (rel_1 + ... + rel_i) / i.

    - "R@k", for each k in ks: share of queries with rel_i = 1 for some i <= k; a query with R = 0 is a miss
    - "MAP@R": mean of (1/R) sum_{i<=R} P@i rel_i
    - "MAP@R released": with R + 1 in both places; the released code counts the query into its own class. At
      most R ranks can be hits: a perfect embedding scores R / (R + 1). The same with a separate gallery.
    - "R-precision": mean of (1/R) sum_{i<=R} rel_i
    - "MAP released", with a gallery only: the released In-Shop MAP, mean over all queries of
      sum_{i<=50} P@i rel_i divided by the hits among those 50 ranks (0 without a hit), whatever ks are given

    Queries with R = 0 are left out of the three means that use R; if none is left, they are 0.0.
    The result's ``queries`` holds the averaged values (see `Scores`).
    backend: "torch" or "faiss", what searches (see `nearest_neighbours`), by chunks in bounded memory.
    Raises VptspError for wrong shapes, lengths or types, no items, rows that hold NaN or infinity, and a
    backend that is unknown or not installed.

    >>> retrieval_metrics(torch.eye(3)[[0, 0, 1, 1]], torch.tensor([7, 7, 9, 9]), ks=(1,))
    {'R@1': 1.0, 'MAP@R': 1.0, 'MAP@R released': 0.5, 'R-precision': 1.0}

    A singleton misses, and is left out of the rest; fewer items than k, even one alone, is no error:

    >>> retrieval_metrics(torch.eye(3)[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 2]), ks=(100,))
    {'R@100': 0.5, 'MAP@R': 1.0, 'MAP@R released': 0.5, 'R-precision': 1.0}
    >>> retrieval_metrics(torch.ones(1, 2), torch.tensor([3]), ks=(1,))
    {'R@1': 0.0, 'MAP@R': 0.0, 'MAP@R released': 0.0, 'R-precision': 0.0}

    Zeros have cosine 0 with everything, and equal scores are ranked by index:

    >>> retrieval_metrics(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]), ks=(1, 2))["R@1"]
    0.25
    """
    check_backend(backend)
    alone = gallery is None
    if alone != (gallery_labels is None):
        raise VptspError("gallery and gallery_labels belong together; give both or neither")
    several: Any = ks if isinstance(ks, Iterable) and getattr(ks, "ndim", None) != 0 else [ks]
    ks = [positive("ks", k) for k in several]
    queries = unit_rows("embeddings", embeddings)
    wanted = _labels("labels", labels, queries)
    items, owned = queries, wanted
    if not alone:
        items = unit_rows("gallery", gallery, like=queries)
        owned = _labels("gallery_labels", gallery_labels, items)

    classes, place, size = owned.unique(return_inverse=True, return_counts=True)
    nearest = torch.searchsorted(classes, wanted).clamp_(max=len(classes) - 1)
    known = classes[nearest] == wanted
    relevant = torch.where(known, size[nearest] - int(alone), 0)
    wanted, owned = torch.where(known, nearest, -1), place

    depth = (relevant + 1).clamp_(min=max([*ks, 1 if alone else INSHOP_RANKS]))
    names = [*(f"R@{k}" for k in ks), *OF_R, "MAP released"]
    values = torch.empty(len(names), len(queries), dtype=torch.float64, device=queries.device)
    for rows, _, found in search(queries, items, depth, exclude_self=alone, backend=backend):
        values[:, rows] = _score(owned[found] == wanted[rows, None], relevant[rows], ks)

    over_all = values.mean(dim=1).tolist()
    over_answerable = values[:, relevant > 0].mean(dim=1).nan_to_num_(0.0).tolist()
    result = {name: b if name in OF_R else a for name, a, b in zip(names, over_all, over_answerable)}
    if alone:
        del result["MAP released"]
    kept = {name: each for name, each in zip(names, values) if name in ("R@1", *OF_R)}
    kept |= {name: kept[name].where(relevant > 0, torch.nan) for name in OF_R}
    return Scores(result, {name: each.float().cpu().numpy() for name, each in kept.items()})


def _score(hits: Tensor, relevant: Tensor, ks: Sequence[int]) -> Tensor:
    """Each query's R@k for every k, the three of `OF_R`, and "MAP released": (len(ks) + 4, n) float64.

    hits (n, ranks) bool says which ranks hold an item of the query's class, relevant (n,) is R.
    """
    if hits.shape[1] == 0:  # a single item finds nothing
        hits = hits.new_zeros(len(hits), 1)
    last = hits.shape[1] - 1
    ranks = torch.arange(1, last + 2, device=hits.device)
    found = hits.cumsum(dim=1, dtype=torch.int32)
    precision = found.double().div_(ranks).mul_(hits)  # P@i rel_i

    def summed(limit: Tensor | int) -> Tensor:
        return torch.where(ranks <= limit, precision, 0.0).sum(dim=1)

    r, at_least_1 = relevant[:, None], relevant.clamp(min=1)
    return torch.stack(
        [
            *((found[:, min(k - 1, last)] > 0).double() for k in ks),
            summed(r) / at_least_1,
            summed(r + 1) / (relevant + 1),
            found.gather(1, at_least_1[:, None] - 1).squeeze(1).double() / at_least_1,
            summed(INSHOP_RANKS) / found[:, min(INSHOP_RANKS - 1, last)].clamp(min=1),
        ]
    )


def _labels(name: str, data: Any, rows: Tensor) -> Tensor:
    try:
        ids = as_tensor(name, data)
    except VptspError:
        if isinstance(data, Iterable) and any(isinstance(each, str) for each in data):
            cure = "number the classes, as numpy.unique(..., return_inverse=True)[1] does"
            raise VptspError(f"{name} are text; {cure}") from None
        raise
    if ids.is_floating_point() and ids.dim() == 1 and (gaps := ids.isnan().nonzero().flatten().tolist()):
        raise VptspError(f"{name}: no class is given for {numbered(gaps, ids)}; leave them and their embeddings out")
    if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.is_meta or ids.is_quantized:
        raise VptspError(f"{name}: {ids.dtype} of shape {tuple(ids.shape)}; give one whole number an item")
    if len(ids) != len(rows):
        raise VptspError(f"{name}: {len(ids)} labels for {len(rows)} embeddings; give one for each")
    return ids.to(rows.device, torch.int64)
