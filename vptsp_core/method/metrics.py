"""Retrieval metrics: R@K, MAP@R, R-precision, and the two forms of MAP in the released code.

MAP@R and R-precision are defined by Musgrave et al., "A Metric Learning Reality Check", ECCV 2020. The search behind
them is in `vptsp_core.method.neighbours`, with its rules for precision, ties and memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vptsp_core.errors import VptspError
from vptsp_core.method.faiss_index import check_backend
from vptsp_core.method.inputs import class_ids, positive, unit_rows
from vptsp_core.method.neighbours import search
from vptsp_core.method.torch_state import torch_defaults

INSHOP_RANKS = 50  # ranks that the released In-Shop MAP reads: the largest K of that benchmark
OF_R = ("MAP@R", "MAP@R released", "R-precision")  # the metrics that are undefined for a query with R = 0


class Scores(dict[str, float]):
    """The metrics of an evaluation by name: a dict, which also has the values of each query as an attribute.

    Attributes:
        queries: (N,) float32 for "R@1", if 1 is in ks, and for each metric of `OF_R`, in the order of the queries. A
            value is NaN if the metric is undefined for the query. The mean of the other values is the metric.
    """

    def __init__(self, metrics: Mapping[str, float], queries: dict[str, np.ndarray]) -> None:
        super().__init__(metrics)
        self.queries = queries


@torch_defaults()
def retrieval_metrics(
    embeddings: Any,
    labels: Any,
    *,
    gallery: Any = None,
    gallery_labels: Any = None,
    ks: int | Sequence[int] = (1, 2, 4, 8),
    backend: str = "torch",
) -> Scores:
    """Measure how well items retrieve other items of their class. All metrics are fractions in [0, 1].

    Without a gallery, each item is a query against all others. An item is excluded from its own list by its index, so a
    duplicate of it still counts. With a gallery, nothing is excluded.

    R is the number of gallery items of the query's class, without the query itself. rel_i is 1 if the item at rank i
    has this class, otherwise 0. P@i = (rel_1 + ... + rel_i) / i. The metrics are means over the queries:

    - "R@k", for each k in ks: 1 if rel_i = 1 for some i <= k, otherwise 0. A query with R = 0 is a miss.
    - "MAP@R": (1/R) sum_{i<=R} P@i rel_i.
    - "MAP@R released": the same with R + 1 in both places. The released code counts the query as a member of its own
      class, so a perfect embedding scores only R / (R + 1). (With a gallery, that code has only "MAP released".)
    - "R-precision": (1/R) sum_{i<=R} rel_i.
    - "MAP released", only with a gallery: the In-Shop MAP of the released code, sum_{i<=50} P@i rel_i divided by the
      number of hits in these 50 ranks; 0 without a hit.

    Queries with R = 0 are left out of the three metrics that use R. If all are left out, these metrics are 0.

    Args:
        embeddings: (N, d), of any precision and L2 norm: a tensor on any device, an array, or a table. In a pandas
            table, the order of the rows counts, not the index.
        labels: (N,), the classes as whole numbers of any value.
        gallery, gallery_labels: (M, d) and (M,), or None.
        ks: the k of "R@k", one number or several.
        backend: ``"torch"`` or ``"faiss"`` (see `nearest_neighbours`).

    Raises:
        VptspError: an argument has a wrong shape, length or type, contains NaN or infinity, or is empty; or the backend
            is unknown or not installed.

    >>> retrieval_metrics(torch.eye(3)[[0, 0, 1, 1]], torch.tensor([7, 7, 9, 9]), ks=(1,))
    {'R@1': 1.0, 'MAP@R': 1.0, 'MAP@R released': 0.5, 'R-precision': 1.0}

    An item without others of its class is a miss in R@k, and left out of the rest. k can exceed the number of items:

    >>> retrieval_metrics(torch.eye(3)[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 2]), ks=(100,))
    {'R@100': 0.5, 'MAP@R': 1.0, 'MAP@R released': 0.5, 'R-precision': 1.0}
    >>> retrieval_metrics(torch.ones(1, 2), torch.tensor([3]), ks=(1,))
    {'R@1': 0.0, 'MAP@R': 0.0, 'MAP@R released': 0.0, 'R-precision': 0.0}

    A row of zeros has cosine 0 with every item, and equal cosines are ranked by index:

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
    query_classes = class_ids("labels", labels, queries)
    items, item_classes = queries, query_classes
    if not alone:
        items = unit_rows("gallery", gallery, like=queries)
        item_classes = class_ids("gallery_labels", gallery_labels, items)

    classes, sizes = item_classes.unique(return_counts=True)
    place = torch.searchsorted(classes, query_classes).clamp_(max=len(classes) - 1)
    relevant = torch.where(classes[place] == query_classes, sizes[place] - int(alone), 0)  # R of each query
    depth = (relevant + 1).clamp_(min=max([*ks, 1 if alone else INSHOP_RANKS]))

    names = [*(f"R@{k}" for k in ks), *OF_R, "MAP released"]
    values = torch.empty(len(names), len(queries), dtype=torch.float64, device=queries.device)
    for rows, _, nearest in search(queries, items, depth, exclude_self=alone, backend=backend):
        hits = item_classes[nearest] == query_classes[rows, None]
        values[:, rows] = _score(hits, relevant[rows], ks)

    over_all = values.mean(dim=1).tolist()
    over_defined = values[:, relevant > 0].mean(dim=1).nan_to_num_(0.0).tolist()
    result = {name: b if name in OF_R else a for name, a, b in zip(names, over_all, over_defined)}
    if alone:
        del result["MAP released"]
    kept = {name: each for name, each in zip(names, values) if name in ("R@1", *OF_R)}
    kept |= {name: kept[name].where(relevant > 0, torch.nan) for name in OF_R}
    return Scores(result, {name: each.float().cpu().numpy() for name, each in kept.items()})


def _score(hits: Tensor, relevant: Tensor, ks: Sequence[int]) -> Tensor:
    """Return the R@k of each query for each k, the metrics `OF_R`, and "MAP released": (len(ks) + 4, n) float64.

    ``hits`` (n, ranks) are the rel_i of each query, and ``relevant`` (n,) is its R.
    """
    if hits.shape[1] == 0:  # there is only one item: it has no neighbour
        hits = hits.new_zeros(len(hits), 1)
    last = hits.shape[1] - 1
    ranks = torch.arange(1, last + 2, device=hits.device)
    hits_so_far = hits.cumsum(dim=1, dtype=torch.int32)
    precision = hits_so_far.double().div_(ranks).mul_(hits)  # P@i rel_i

    def summed(limit: Tensor | int) -> Tensor:
        return torch.where(ranks <= limit, precision, 0.0).sum(dim=1)

    r, at_least_1 = relevant[:, None], relevant.clamp(min=1)
    return torch.stack(
        [
            *((hits_so_far[:, min(k - 1, last)] > 0).double() for k in ks),
            summed(r) / at_least_1,
            summed(r + 1) / (relevant + 1),
            hits_so_far.gather(1, at_least_1[:, None] - 1).squeeze(1).double() / at_least_1,
            summed(INSHOP_RANKS) / hits_so_far[:, min(INSHOP_RANKS - 1, last)].clamp(min=1),
        ]
    )
