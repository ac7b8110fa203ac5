"""Compare the cost of retrieval metrics with that of a bare exact search.

The bare search is chunks of `q @ g.T` and `topk`, on rows of length 1, with one k for all: the longest list that these
metrics need (the largest K or class). Both are timed alternately in one process, so a busy machine slows both.
Memory is the rise of the peak in a fresh process for each. With a clone of the released implementation, its evaluation
is measured too (`released_metrics`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vptsp_core.errors import VptspError
from vptsp_core.method.faiss_index import check_backend
from vptsp_core.method.inputs import positive, unit_rows
from vptsp_core.method.metrics import retrieval_metrics
from vptsp_core.paper.released import clone_folder
from vptsp_core.runs.evaluate import RECALL_AT
from vptsp_core.system.devices import pick_device

from .clock import seconds
from .released_metrics import released_metrics

BARE_ROWS = 512  # the product is at full speed from about 256 rows on
BOUND = 1e-3  # of the difference to released metrics: rounding swaps a few neighbours that are almost equally near
SPREAD = 2.0  # of the items about their class centre, in units of the spread of the centres


class Size(NamedTuple):
    """The size of a retrieval benchmark. tail: sigma of the log-normal distribution of class sizes."""

    items: int  # searched in; if queries is 0, they are the queries too
    dim: int
    classes: int
    ks: tuple[int, ...]
    queries: int = 0
    tail: float = 0.25


SIZES = {  # items, dimensions and classes of the test sets; the tails are ours
    "sop": Size(60_502, 384, 11_316, RECALL_AT["sop"]),
    "inshop": Size(12_612, 384, 3_985, RECALL_AT["inshop"], queries=14_218),
    "inaturalist": Size(136_093, 512, 2_452, RECALL_AT["inaturalist"], tail=0.8),
}


class Data(NamedTuple):
    """Arguments of `retrieval_metrics`."""

    embeddings: Tensor
    labels: Tensor
    gallery: Tensor | None
    gallery_labels: Tensor | None

    @property
    def owned(self) -> Tensor:
        """Labels of the items searched in: (M,) int64."""
        return self.labels if self.gallery_labels is None else self.gallery_labels


def benchmark_metrics(
    size: Size, device: str | None = "cpu", backend: str = "torch", repeats: int = 3,
    reference: str | Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure `retrieval_metrics` and a bare exact search over the same made-up items.

    Args:
        device: None for a GPU if there is one.
        backend: searches for the metrics; the bare search always uses torch.
        reference: the user's clone of the released implementation, to measure it too.

    Returns:
        - for "bare", "metrics" and "released": "..._s" (medians over repeats), "..._mib" (rise of the peak of memory)
          and "..._peak_mib" (that peak, with data and interpreter; on a GPU the GPU's);
        - "ratio": the median of each turn's "ratios", metrics / bare;
        - "released_ratio", released / metrics, and "released_difference", the largest of any metric that both compute;
        - the "k" of the bare search, the "largest_class" searched in, "R@1", and the machine.

    Raises:
        VptspError: a device, backend or clone that cannot be used here, or released metrics that differ from ours.
    """
    check_backend(backend)
    if reference is not None:
        clone_folder(reference)
    target = pick_device(device)
    device = "cpu" if target.type == "cpu" else str(target)
    data = clustered(size, device)
    names = ["bare", "metrics", *(["released"] if reference is not None else [])]
    tasks = {name: _task(name, size, data, backend, reference) for name in names}
    results: dict[str, Any] = {}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(positive("repeats", repeats)):
        for name, task in tasks.items():
            times[name].append(seconds(lambda name=name, task=task: results.update({name: task()}), target))
    ratios = [ours / bare for bare, ours in zip(times["bare"], times["metrics"])]
    found: dict[str, Any] = {key: value for key, value in size._asdict().items() if key != "ks"}
    found |= {"k": _bare_k(size, data), "largest_class": int(data.owned.bincount().max()), "backend": backend}
    found |= {f"{name}_s": round(statistics.median(of), 3) for name, of in times.items()}
    found |= {"ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}
    if reference is not None:
        slower = [theirs / ours for theirs, ours in zip(times["released"], times["metrics"])]
        found["released_ratio"] = round(statistics.median(slower), 3)
        found["released_difference"] = _difference(results["metrics"], results["released"])
    spawn, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    for name in names:
        with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as process:
            memory = process.submit(_memory_mib, name, size, device, backend, threads, reference).result()
            found[f"{name}_mib"], found[f"{name}_peak_mib"] = memory
    return {
        **found, "R@1": round(results["metrics"]["R@1"], 4),
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(device), "threads": threads,
        "torch": torch.__version__,
    }  # fmt: skip


def bare_search(queries: Tensor, gallery: Tensor, k: int) -> Tensor:
    """Return the indices (n, k) of the gallery rows nearest to each query, the query itself included."""
    found = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), BARE_ROWS):
        found[start : start + BARE_ROWS] = (queries[start : start + BARE_ROWS] @ gallery.T).topk(k).indices
    return found


def class_sizes(items: int, classes: int, tail: float) -> Tensor:
    """Return the items per class (classes,), which sum to `items`: 2 each, the rest distributed log-normally."""
    quantiles = (torch.arange(classes, dtype=torch.float64) + 0.5) / classes
    shares = (tail * torch.special.ndtri(quantiles)).exp().cumsum(0)
    return 2 + (shares / shares[-1] * (items - 2 * classes)).round().long().diff(prepend=torch.zeros(1).long())


def clustered(size: Size, device: str = "cpu", seed: int = 0) -> Data:
    """Make embeddings about random class centres, sorted by label."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(size.classes, size.dim, generator=generator)

    def drawn(n: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(size.classes).repeat_interleave(class_sizes(n, size.classes, size.tail))
        rows = torch.randn(n, size.dim, generator=generator)
        for start in range(0, n, 4096):  # in place and by parts, so that making the data leaves no peak of memory
            rows[start : start + 4096].mul_(SPREAD).add_(centres[labels[start : start + 4096]])
        return rows.to(device), labels.to(device)

    gallery = drawn(size.items)
    return Data(*drawn(size.queries), *gallery) if size.queries else Data(*gallery, None, None)


def _bare_k(size: Size, data: Data) -> int:
    return min(size.items, max(*size.ks, int(data.owned.bincount().max())))


def _task(
    name: str, size: Size, data: Data, backend: str, reference: str | Path | None
) -> Callable[[], dict[str, float] | Tensor]:  # fmt: skip
    """Prepare a search or metrics. The bare search and the released metrics get rows of length 1 beforehand."""
    if name == "metrics":
        return lambda: retrieval_metrics(**data._asdict(), ks=size.ks, backend=backend)
    queries = unit_rows("embeddings", data.embeddings)
    gallery = None if data.gallery is None else unit_rows("gallery", data.gallery)
    if name == "released":
        assert reference is not None
        return released_metrics(reference, queries, data.labels, size.ks, gallery, data.gallery_labels)
    k = _bare_k(size, data)
    return lambda: bare_search(queries, queries if gallery is None else gallery, k)


def _difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """Return the largest difference of a metric that both computed. Raises VptspError if it is too large."""
    far = {name: abs(value - ours[name]) for name, value in theirs.items()}
    for name, value in far.items():
        if not value <= BOUND:
            raise VptspError(
                f"reference: its {name} is {theirs[name]:.6f}, ours {ours[name]:.6f} on the same embeddings; "
                "give a clone as it was released"
            )
    return max(far.values())


def _memory_mib(
    name: str, size: Size, device: str, backend: str, threads: int, reference: str | Path | None
) -> tuple[float, float]:  # fmt: skip
    """Return the rise of the peak of memory during one task, and the peak. Call it in a fresh process."""
    torch.set_num_threads(threads)
    task = _task(name, size, clustered(size, device), backend, reference)
    before = _peak_bytes(device, reset=True)
    task()
    peak = _peak_bytes(device)
    return round((peak - before) / 2**20, 1), round(peak / 2**20, 1)


def _peak_bytes(device: str, reset: bool = False) -> int:
    """Return the peak of memory so far; with `reset`, first restart it from the current memory if the system can."""
    if device != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        import resource  # missing on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    # not ru_maxrss here: on Linux a process inherits it from its parent, even across exec
    return 1024 * int(next(line for line in status.read_text().splitlines() if "VmHWM" in line).split()[1])
