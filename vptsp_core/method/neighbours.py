"""Exact nearest neighbours by cosine, in bounded memory.

The cosine is the inner product of L2-normalised rows in float32, whatever the precision of the input and
the caller's settings of TF32, bfloat16 and autocast. A row of zeros has cosine 0 with everything. Equal scores
are ranked by index, lowest first: `topk` promises no order, so rows in which scores tie are ranked once more.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vptsp_core.errors import VptspError
from vptsp_core.method.faiss_index import FlatIndex, check_backend
from vptsp_core.method.torch_state import in_torch_defaults

CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**30}  # scores and lists of one chunk; enough for full matmul speed
CHUNK_ROWS = {"cpu": 512, "cuda": 2**20}  # on a CPU more rows are not faster and overflow its cache
MIN_ROWS = 16  # BLAS computes smaller products otherwise: their last bits differ between columns


@in_torch_defaults
def nearest_neighbours(
    queries: Any,
    gallery: Any,
    k: int,
    *,
    exclude_self: bool = False,
    chunk: int | None = None,
    backend: str = "torch",
) -> tuple[Tensor, Tensor]:
    """The k gallery items of highest cosine for each query: scores (N, k) float32 and indices (N, k) int64.

    queries (N, d) and gallery (M, d): tensors, arrays or tables, of any precision; rows need not have length 1.
    The answer is on the device of the queries, best first, equal scores by index; for an Apple GPU on the CPU, which
    searches in its place (`as_tensor`). exclude_self: query i is gallery item i and does not find itself. With
    fewer than k items, score -inf and index -1 fill the rest. chunk: queries scored at a time
    (default: what fits into 256 MiB, at most 512; GPU: 1 GiB).

    backend "torch" is exact; "faiss" is a flat (exact) faiss index, on the GPU where the queries are there
    and faiss is built for it. Its scores may differ in their last bits, and with them the order of neighbours
    that all but tie; which of the items that tie for the last places it lists is its own choice. Where a GPU
    index cannot serve (more than 2,048 neighbours, no kernels for the card), torch answers, with a warning
    once. Raises VptspError for wrong input, and if faiss is asked for but not installed.

    >>> scores, indices = nearest_neighbours(torch.eye(2), [[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], 2)
    >>> indices.tolist()
    [[0, 2], [1, 0]]
    >>> nearest_neighbours(torch.eye(2), torch.eye(2), 2, exclude_self=True)[1].tolist()
    [[1, -1], [0, -1]]
    """
    check_backend(backend)
    k, chunk = positive("k", k), None if chunk is None else positive("chunk", chunk)
    q = unit_rows("queries", queries)
    items = q if gallery is queries else unit_rows("gallery", gallery, like=q)
    if exclude_self and len(q) != len(items):
        raise VptspError(f"exclude_self: {len(q)} queries, {len(items)} gallery items; give the same items")
    scores = torch.full((len(q), k), -torch.inf, device=q.device)
    indices = torch.full((len(q), k), -1, device=q.device)
    everyone = torch.full((len(q),), k, device=q.device)
    blocks = search(q, items, everyone, exclude_self=exclude_self, chunk=chunk, backend=backend)
    for rows, best, found in blocks:
        scores[rows, : best.shape[1]], indices[rows, : best.shape[1]] = best, found
    return scores, indices


def search(
    queries: Tensor,
    items: Tensor,
    depth: Tensor,
    *,
    exclude_self: bool,
    chunk: int | None = None,
    backend: str = "torch",
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (rows (c,), scores (c, k), indices (c, k)), k >= the depth of each row, until all are done.

    queries (N, d) and items (M, d) are unit rows; depth (N,) says how many ranks a query needs (k stops at
    the items there are). Queries that need the longest lists come first: lists are only as long as their own
    chunk needs, and chunks shorten as lists grow; one huge class neither slows the rest nor fills the memory.
    """
    n, (m, d) = len(queries), items.shape
    depth = depth.clamp(max=m - int(exclude_self))
    order = depth.argsort(descending=True, stable=True)
    device = "cuda" if queries.is_cuda else "cpu"
    budget = CHUNK_BYTES[device]
    most = max(MIN_ROWS, min(n, chunk or min(CHUNK_ROWS[device], budget // (4 * m))))
    index = FlatIndex(items, int(depth.max()) + exclude_self) if backend == "faiss" else None
    buffer = None
    start = 0
    while start < n:
        k = int(depth[order[start]])
        if index is not None and not index.usable:
            index = None
        row_bytes = 64 * k + 4 * (d if index else m)  # faiss holds no row of scores, only its copy of the query
        step = chunk or max(1, budget // row_bytes)
        rows = order[start : start + (step if index else min(step, most))]
        if index is not None:
            if (answer := index.search(queries[rows], k + exclude_self)) is None:
                continue
            best, found = _order_faiss_lists(*answer, without=rows if exclude_self else None)
        else:
            if buffer is None:  # made once: fresh memory for each chunk would cost a quarter more
                buffer = torch.empty(most, m, device=queries.device)
            best, found = _search_exactly(queries, items, rows, k, exclude_self, buffer)
        start += len(rows)
        yield rows, best, found


def _search_exactly(
    queries: Tensor, items: Tensor, rows: Tensor, k: int, exclude_self: bool, buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores and indices (c, k) of these rows (c,) of the queries: a product into the buffer, and `topk`."""
    padded = rows if len(rows) >= MIN_ROWS else rows.repeat(MIN_ROWS)[:MIN_ROWS]
    scores = _cosines(queries[padded], items, buffer[: len(padded)])[: len(rows)]
    if exclude_self:
        scores.scatter_(1, rows[:, None], -torch.inf)
    best, found = scores.topk(min(k + 1, len(items)))  # one more, to see a tie across the end
    equal = best[:, 1:] == best[:, :-1]
    tied, across = (e.any(dim=1).nonzero().squeeze(1) for e in (equal, equal[:, -1:]))
    found[tied] = _order_ties(best[tied], found[tied])
    for part in across.split(max(1, len(rows) // 16)):
        found[part] = _complete_ties(scores[part], best[part], found[part])
    return best[:, :k], found[:, :k]


def _order_faiss_lists(best: Tensor, found: Tensor, without: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores and indices (c, k) as faiss lists them, with equal scores by index, and without the query itself.

    without (c,): each query's own index, to drop from its list; from a list that it is not in, drop the last.
    """
    tied = (best[:, 1:] == best[:, :-1]).any(dim=1).nonzero().squeeze(1)
    found[tied] = _order_ties(best[tied], found[tied])
    if without is None:
        return best, found
    others = found != without[:, None]
    others[:, -1] &= ~others.all(dim=1)
    return best[others].view(len(best), -1), found[others].view(len(best), -1)


def _cosines(queries: Tensor, items: Tensor, out: Tensor) -> Tensor:
    """queries @ items.T into out, in true float32 whatever is set outside."""
    backends: Any = torch.backends
    switches = (backends.cuda.matmul, backends.mkldnn.matmul)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        with torch.autocast(queries.device.type, enabled=False):
            return torch.mm(queries, items.T, out=out)
    finally:
        for switch, setting in zip(switches, before):
            switch.fp32_precision = setting


def _order_ties(scores: Tensor, indices: Tensor) -> Tensor:
    """Indices (n, k) of descending scores (n, k), reordered so that equal scores go by index."""
    order = indices.argsort(dim=1)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return indices.gather(1, order)


def _complete_ties(scores: Tensor, best: Tensor, found: Tensor) -> Tensor:
    """Indices found (n, k) for the scores best (n, k), with its last ties replaced by those of lowest index.

    `topk` takes any of the items that tie for the last places; those of lowest index in scores (n, m) belong there.
    """
    m, last = scores.shape[1], best[:, -1:]
    low_index_high = torch.arange(m, 0, -1, dtype=torch.int32, device=scores.device)
    equal = torch.where(scores == last, low_index_high, 0).topk(best.shape[1]).indices
    place = torch.arange(best.shape[1], device=scores.device) - (best > last).sum(dim=1, keepdim=True)
    return torch.where(place < 0, found, equal.gather(1, place.clamp(min=0)))


def positive(name: str, value: Any) -> int:
    """``value`` as a whole number of at least 1. Raises VptspError: naming the argument, if it is not."""
    try:
        if (number := operator.index(value)) >= 1:
            return number
    except TypeError:
        pass
    raise VptspError(f"{name}: {value!r} is not a whole number of at least 1")


def as_tensor(name: str, data: Any) -> Tensor:
    """A tensor or array of any shape as a dense tensor without gradient, its memory shared where that is possible.

    For pandas the order of the rows counts, not the index. Data on an Apple GPU moves to the CPU: that GPU has no
    float64 and no stable sort.
    Raises VptspError: naming the argument, where torch cannot read it, or some of its values are masked.
    """
    try:
        if isinstance(data, (list, tuple)) and data and all(isinstance(each, Tensor) for each in data):
            data = torch.stack(list(data))
        if isinstance(data, Tensor):
            data = data.detach().cpu() if data.device.type == "mps" else data.detach()
            return data.to_dense() if data.layout != torch.strided else data
        if hasattr(data, "toarray"):  # scipy's sparse arrays
            data = data.toarray()
        elif hasattr(data, "to_numpy"):  # pandas and similar
            table, data = data, data.to_numpy()
            if data.dtype == object:  # pandas types that may have missing values
                lacks = table.isna().any(axis=None)
                data = table.to_numpy(float, na_value=np.nan) if lacks else np.array(data.tolist())
        if np.ma.isMaskedArray(data):
            if np.ma.is_masked(data):
                raise ValueError(f"{np.ma.count_masked(data)} of its values are masked: leave their rows out")
            data = data.data
        if isinstance(data, np.ndarray):
            usable = data.flags.writeable and data.dtype.isnative and all(step >= 0 for step in data.strides)
            data = data if usable else data.astype(data.dtype.newbyteorder("="), order="C")  # a copy
        return torch.as_tensor(data).detach()
    except Exception as error:  # any library may raise here
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VptspError(f"{name}: torch cannot read it ({reason}); give a tensor or an array of numbers") from None


def numbered(rows: list[int], of: Sized) -> str:
    """How many rows and the first of them, for a message."""
    return f"{len(rows)} of {len(of)} rows ({', '.join(map(str, rows[:10]))}{', ...' * (len(rows) > 10)})"


def unit_rows(name: str, data: Any, like: Tensor | None = None) -> Tensor:
    """data (n, d) as float32 rows of L2 norm 1 (zeros stay zeros), a copy, on the device of like (m, d).
    Raises VptspError: naming the argument: another shape, another d, or rows that hold NaN or infinity.
    """
    x = as_tensor(name, data)
    if x.dim() != 2 or 0 in x.shape or x.is_complex() or x.is_meta or x.is_quantized:
        raise VptspError(f"{name}: {x.dtype} of shape {tuple(x.shape)}; give one real vector a row, (n, d)")
    if like is not None:
        x = x.to(like.device)
        if x.shape[1] != like.shape[1]:
            raise VptspError(f"{name}: {x.shape[1]} dimensions where the queries have {like.shape[1]}")
    x = x if x.dtype == torch.float64 else x.float()
    peak = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True)
    bad = (~peak.isfinite()).squeeze(1).nonzero().squeeze(1).tolist()
    if bad:
        raise VptspError(f"{name}: NaN or infinity in {numbered(bad, x)}; leave them out")
    unit = (x / torch.where(peak > 0, peak, 1)).float()  # by the peak first: squares could over- or underflow
    return unit.div_(torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp_(min=1))
