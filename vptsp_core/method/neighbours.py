"""Exact nearest neighbours by cosine, in bounded memory.

The cosine is the inner product of L2-normalised rows in float32. The precision of the input and the caller's settings
of TF32, bfloat16 and autocast do not matter. A row of zeros has cosine 0 with every row. Equal cosines are ranked by
index, lowest first. `torch.topk` leaves their order open, so lists with equal cosines are sorted once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vptsp_core.errors import VptspError
from vptsp_core.method.faiss_index import FlatIndex, check_backend
from vptsp_core.method.inputs import positive, unit_rows
from vptsp_core.method.torch_state import torch_defaults

CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**30}  # for the scores and lists of one chunk; larger chunks are not faster
CHUNK_ROWS = {"cpu": 512, "cuda": 2**20}  # on a CPU, more rows do not fit into its cache
MIN_ROWS = 16  # BLAS computes smaller products by another method, in which equal columns differ in their last bits


@torch_defaults()
def nearest_neighbours(
    queries: Any,
    gallery: Any,
    k: int,
    *,
    exclude_self: bool = False,
    backend: str = "torch",
) -> tuple[Tensor, Tensor]:
    """Return the k gallery items with the highest cosine for each query.

    Args:
        queries: (N, d), of any precision and L2 norm: a tensor on any device, an array, or a table.
        gallery: (M, d), the same.
        k: length of the lists. If the gallery has fewer items, score -inf and index -1 fill the rest.
        exclude_self: leave gallery item i out of the list of query i, because they are the same item.
        backend: ``"torch"``, or ``"faiss"`` for a flat faiss index, which is exact too. faiss searches on the GPU if
            the queries are there and faiss is built for it. Scores by faiss can differ in their last bits, so
            neighbours with nearly equal scores can be swapped. If items tie for the last places of a list, faiss
            chooses among them. If faiss cannot use the GPU (lists longer than 2,048, no kernels for it, no memory),
            torch searches, and one warning says so.

    Returns:
        Scores (N, k) float32 and indices (N, k) int64, best first, on the device of the queries. For an Apple GPU, the
        search runs on the CPU, and the results stay there.

    Raises:
        VptspError: an argument is invalid, or the backend is unknown or not installed.

    >>> scores, indices = nearest_neighbours(torch.eye(2), [[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], 2)
    >>> indices.tolist()
    [[0, 2], [1, 0]]
    >>> nearest_neighbours(torch.eye(2), torch.eye(2), 2, exclude_self=True)[1].tolist()
    [[1, -1], [0, -1]]
    """
    check_backend(backend)
    k = positive("k", k)
    q = unit_rows("queries", queries)
    items = q if gallery is queries else unit_rows("gallery", gallery, like=q)
    if exclude_self and len(q) != len(items):
        raise VptspError(f"exclude_self: {len(q)} queries, {len(items)} gallery items; give the same items")
    scores = torch.full((len(q), k), -torch.inf, device=q.device)
    indices = torch.full((len(q), k), -1, device=q.device)
    depth = torch.full((len(q),), k, device=q.device)
    for rows, best, nearest in search(q, items, depth, exclude_self=exclude_self, backend=backend):
        scores[rows, : best.shape[1]], indices[rows, : best.shape[1]] = best, nearest
    return scores, indices


def search(
    queries: Tensor, items: Tensor, depth: Tensor, *, exclude_self: bool, backend: str = "torch"
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Search in chunks, and yield for each chunk the rows of its queries and their lists.

    The queries with the longest lists come first. The lists of a chunk are only as long as its queries need, and chunks
    grow as lists get shorter. So one huge class neither slows the other queries down nor fills the memory.

    Args:
        queries, items: (N, d) and (M, d), unit rows.
        depth: (N,), the length of list that each query needs. A list ends when there are no more items.
        exclude_self, backend: as in `nearest_neighbours`.

    Yields:
        Rows (c,), scores (c, k) and indices (c, k). k is at least the depth of each row.
    """
    n, (m, d) = len(queries), items.shape
    depth = depth.clamp(max=m - int(exclude_self))
    order = depth.argsort(descending=True, stable=True)
    device = "cuda" if queries.is_cuda else "cpu"
    budget = CHUNK_BYTES[device]
    most = max(MIN_ROWS, min(n, CHUNK_ROWS[device], budget // (4 * m)))
    index = FlatIndex(items, int(depth.max()) + exclude_self) if backend == "faiss" else None
    buffer = None
    start = 0
    while start < n:
        k = int(depth[order[start]])
        lists = None
        if index is not None and index.usable:  # faiss needs memory for the lists and a copy of the queries
            rows = order[start : start + max(1, budget // (64 * k + 4 * d))]
            lists = index.search(queries[rows], k + exclude_self)
        if lists is not None:
            best, nearest = _order_faiss_lists(*lists, without=rows if exclude_self else None)
        else:  # torch needs memory for the lists and all scores
            rows = order[start : start + min(most, max(1, budget // (64 * k + 4 * m)))]
            if buffer is None:  # allocated once: new memory for each chunk would take a quarter more time
                buffer = torch.empty(most, m, device=queries.device)
            best, nearest = _search_exactly(queries, items, rows, k, exclude_self, buffer)
        start += len(rows)
        yield rows, best, nearest


def _search_exactly(
    queries: Tensor, items: Tensor, rows: Tensor, k: int, exclude_self: bool, buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """Return scores (c, k) and indices (c, k) for the queries ``rows`` (c,), by a product into ``buffer`` and topk."""
    padded = rows if len(rows) >= MIN_ROWS else rows.repeat(MIN_ROWS)[:MIN_ROWS]
    scores = torch.mm(queries[padded], items.T, out=buffer[: len(padded)])[: len(rows)]
    if exclude_self:
        scores.scatter_(1, rows[:, None], -torch.inf)
    best, nearest = scores.topk(min(k + 1, len(items)))  # one more, to see ties across the end of a list
    equal = best[:, 1:] == best[:, :-1]
    # rows with equal scores anywhere, and rows with equal scores in the last list place and the one after it
    tied, across = (e.any(dim=1).nonzero().squeeze(1) for e in (equal, equal[:, -1:]))
    nearest[tied] = _order_ties(best[tied], nearest[tied])
    for part in across.split(max(1, len(rows) // 16)):  # in parts, which need less memory
        nearest[part] = _complete_ties(scores[part], best[part], nearest[part])
    return best[:, :k], nearest[:, :k]


def _order_faiss_lists(best: Tensor, nearest: Tensor, without: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the scores and indices (c, k) that faiss found, with equal scores ordered by index.

    ``without`` (c,) names one item per list, which is dropped from the list. If the list does not have this item, the
    list's last item is dropped.
    """
    tied = (best[:, 1:] == best[:, :-1]).any(dim=1).nonzero().squeeze(1)
    nearest[tied] = _order_ties(best[tied], nearest[tied])
    if without is None:
        return best, nearest
    others = nearest != without[:, None]
    others[:, -1] &= ~others.all(dim=1)
    return best[others].view(len(best), -1), nearest[others].view(len(best), -1)


def _order_ties(scores: Tensor, indices: Tensor) -> Tensor:
    """Return indices (n, k) reordered so that equal scores (n, k), which are descending, are ordered by index."""
    order = indices.argsort(dim=1)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return indices.gather(1, order)


def _complete_ties(scores: Tensor, best: Tensor, nearest: Tensor) -> Tensor:
    """Return the indices that topk found, (n, k), with the right items in the last places.

    If items tie for the last places of a list, topk takes any of them. Those with the lowest indices belong there.
    ``scores`` (n, m) are those of all items, ``best`` (n, k) those of the lists.
    """
    m, last = scores.shape[1], best[:, -1:]
    low_index_high = torch.arange(m, 0, -1, dtype=torch.int32, device=scores.device)  # so topk prefers low indices
    equal = torch.where(scores == last, low_index_high, 0).topk(best.shape[1]).indices
    place = torch.arange(best.shape[1], device=scores.device) - (best > last).sum(dim=1, keepdim=True)
    return torch.where(place < 0, nearest, equal.gather(1, place.clamp(min=0)))
