"""Exact nearest neighbours by cosine, in bounded memory.

The cosine is the inner product of L2-normalised rows in float32, whatever precision comes in and whatever
TF32, bfloat16 or autocast setting is on outside. A row of zeros has cosine 0 with everything. Equal scores
are ranked by index, lowest first: `topk` promises no order, so rows in which scores tie are ranked once more.
"""

from __future__ import annotations

import functools
import importlib
import operator
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vptsp_core.errors import VptspError

CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**30}  # scores and lists of one chunk; enough for full matmul speed
MIN_ROWS = 16  # smaller products take other paths through BLAS, whose last bits differ from column to column
FAISS_GPU_MAX_K = 2048


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

    queries (N, d) and gallery (M, d): tensors or numpy arrays, of any precision; rows need not have length 1.
    The answer is on the device of the queries, best first, equal scores by index. exclude_self: query i is
    gallery item i and does not find itself. Where there are fewer than k items, score -inf and index -1 fill
    the places left over. chunk: queries scored at a time (default: what fits into 256 MiB, on a GPU 1 GiB).

    backend "torch" is exact; "faiss" is a flat (exact) faiss index, on the GPU where the queries are there
    and faiss is built for it. Of scores that tie across the end of the list, faiss keeps those it met first.
    Where a GPU index cannot serve (more than 2,048 neighbours, no kernels for the card), torch answers, with
    a warning once. Raises VptspError for wrong input, and if faiss is asked for but not installed.

    >>> scores, indices = nearest_neighbours(torch.eye(2), [[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], 2)
    >>> indices.tolist()
    [[0, 2], [1, 0]]
    >>> nearest_neighbours(torch.eye(2), torch.eye(2), 2, exclude_self=True)[1].tolist()
    [[1, -1], [0, -1]]
    """
    if backend not in ("torch", "faiss"):
        raise VptspError(f"backend {backend!r} is unknown; choose 'torch' or 'faiss'")
    k, chunk = positive("k", k), None if chunk is None else positive("chunk", chunk)
    q = unit_rows("queries", queries)
    items = q if gallery is queries else unit_rows("gallery", gallery, like=q)
    if exclude_self and len(q) != len(items):
        raise VptspError(f"exclude_self: {len(q)} queries, {len(items)} gallery items; give the same items")
    scores = torch.full((len(q), k), -torch.inf, device=q.device)
    indices = torch.full((len(q), k), -1, device=q.device)
    everyone = torch.arange(len(q), device=q.device)
    answer = _faiss_search(q, items, min(k + exclude_self, len(items))) if backend == "faiss" else None
    if answer is not None:
        best, found = answer
        if exclude_self:  # drop the query, or the last place of a list that it is not in
            behind = (found == everyone[:, None]).long().argsort(dim=1, stable=True)
            others = behind[:, : min(k, len(items) - 1)]
            best, found = best.gather(1, others), found.gather(1, others)
        blocks = iter([(everyone, best, found)])
    else:
        blocks = search(q, items, torch.full_like(everyone, k), exclude_self=exclude_self, chunk=chunk)
    for rows, best, found in blocks:
        scores[rows, : best.shape[1]], indices[rows, : best.shape[1]] = best, found
    return scores, indices


def search(
    queries: Tensor, items: Tensor, depth: Tensor, *, exclude_self: bool, chunk: int | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (rows (c,), scores (c, k), indices (c, k)), k >= the depth of each row, until all had their turn.

    queries (N, d) and items (M, d) are unit rows; depth (N,) says how many ranks a query needs (k stops at
    the items there are). Queries that need the longest lists come first: lists are only as long as their own
    chunk needs, and chunks shorten as lists grow; one huge class neither slows the rest nor fills the memory.
    """
    n, m = len(queries), len(items)
    depth = depth.clamp(max=m - int(exclude_self))
    order = depth.argsort(descending=True, stable=True)
    budget = CHUNK_BYTES["cuda" if queries.is_cuda else "cpu"]
    most = max(MIN_ROWS, min(n, chunk or budget // (4 * m)))
    buffer = torch.empty(most, m, device=queries.device)  # reused: fresh memory would cost a quarter more
    start = 0
    while start < n:
        k = int(depth[order[start]])
        rows = order[start : start + (chunk or max(1, budget // (4 * m + 64 * k)))]
        start += len(rows)
        padded = rows if len(rows) >= MIN_ROWS else rows.repeat(MIN_ROWS)[:MIN_ROWS]
        scores = _cosines(queries[padded], items, buffer[: len(padded)])[: len(rows)]
        if exclude_self:
            scores.scatter_(1, rows[:, None], -torch.inf)
        best, found = scores.topk(min(k + 1, m))  # one more, to see a tie across the end
        equal = best[:, 1:] == best[:, :-1]
        tied, across = (e.any(dim=1).nonzero().squeeze(1) for e in (equal, equal[:, -1:]))
        found[tied] = _order_ties(best[tied], found[tied])
        for part in across.split(max(1, len(rows) // 16)):
            found[part] = _complete_ties(scores[part], best[part], found[part])
        yield rows, best[:, :k], found[:, :k]


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

    `topk` takes any of the items that tie for the last places; those first in scores (n, m) are due there.
    """
    m, last = scores.shape[1], best[:, -1:]
    low_index_high = torch.arange(m, 0, -1, dtype=torch.int32, device=scores.device)
    equal = torch.where(scores == last, low_index_high, 0).topk(best.shape[1]).indices
    place = torch.arange(best.shape[1], device=scores.device) - (best > last).sum(dim=1, keepdim=True)
    return torch.where(place < 0, found, equal.gather(1, place.clamp(min=0)))


def _faiss_search(queries: Tensor, items: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """(scores, indices), each (N, k), from a flat faiss index; None where a GPU index cannot serve."""
    try:
        faiss = importlib.import_module("faiss")
    except ImportError:
        raise VptspError("backend 'faiss': not installed; pip install faiss-cpu, or use 'torch'") from None
    index = faiss.IndexFlatIP(queries.shape[1])
    try:
        if on_gpu := queries.is_cuda and hasattr(faiss, "StandardGpuResources"):
            card = queries.device.index or 0
            if k > FAISS_GPU_MAX_K or not _faiss_gpu_works(card):
                raise RuntimeError("more than 2,048 neighbours, or no kernels for the card")
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), card, index)
        index.add(items.cpu().numpy())
        answer = index.search(queries.cpu().numpy(), k)
    except RuntimeError as error:
        if not on_gpu:
            raise
        _warn_once(f"faiss cannot search on this GPU ({error}); searching with torch")
        return None
    scores, indices = (torch.from_numpy(a).to(queries.device) for a in answer)
    return scores, _order_ties(scores, indices)


@functools.cache
def _faiss_gpu_works(card: int) -> bool:
    """Try a tiny search in a process of its own: faiss without kernels for the card aborts, no exception."""
    code = (
        "import faiss, numpy as np; x = np.eye(4, dtype='float32'); r = faiss.StandardGpuResources(); "
        f"i = faiss.index_cpu_to_gpu(r, {card}, faiss.IndexFlatIP(4)); i.add(x); i.search(x, 2)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def positive(name: str, value: Any) -> int:
    try:
        if (number := operator.index(value)) >= 1:
            return number
    except TypeError:
        pass
    raise VptspError(f"{name}: {value!r} is not a whole number of at least 1")


def as_tensor(name: str, data: Any) -> Tensor:
    try:
        if getattr(getattr(data, "flags", None), "writeable", True) is False:
            data = data.copy()  # a memory-mapped or frozen array, of which torch would warn
        return torch.as_tensor(data).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise VptspError(f"{name}: torch cannot read it ({error}); give a tensor or an array") from None


def unit_rows(name: str, data: Any, like: Tensor | None = None) -> Tensor:
    """data (n, d) as float32 rows of L2 norm 1 (zeros stay zeros), a copy, on the device of like."""
    x = as_tensor(name, data)
    if x.dim() != 2 or 0 in x.shape or x.is_complex():
        raise VptspError(f"{name}: {x.dtype} of shape {tuple(x.shape)}; give one real vector a row, (n, d)")
    if like is not None:
        x = x.to(like.device)
        if x.shape[1] != like.shape[1]:
            raise VptspError(f"{name}: {x.shape[1]} dimensions where the queries have {like.shape[1]}")
    x = x if x.dtype == torch.float64 else x.float()
    peak = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True)
    bad = (~peak.isfinite()).squeeze(1).nonzero().squeeze(1).tolist()
    if bad:
        which = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise VptspError(f"{name}: NaN or infinity in {len(bad)} of {len(x)} rows ({which}); leave them out")
    unit = (x / torch.where(peak > 0, peak, 1)).float()  # by the peak first, lest squares over- or underflow
    return unit.div_(torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp_(min=1))
