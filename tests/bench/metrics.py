"""What retrieval metrics cost beside the search that they cannot do without.

The measure is a bare exact search: chunks of `q @ g.T` and `topk`, on rows that are unit rows already, with one k for
all, the longest list that these metrics need (the largest K or class). Both are timed alternately in one process, so
that a busy machine slows both; memory is measured in a fresh process for each, as the rise of its peak above what it
held with the data in place. With a clone of the released implementation, its evaluation is timed too
(`released_metrics`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vptsp_core.errors import VptspError
from vptsp_core.method.faiss_index import check_backend
from vptsp_core.method.metrics import retrieval_metrics
from vptsp_core.method.neighbours import positive, unit_rows
from vptsp_core.paper.released import clone_folder
from vptsp_core.runs.evaluate import RECALL_AT
from vptsp_core.system.devices import pick_device

from .clock import wait
from .released_metrics import released_metrics

BARE_ROWS = 512  # the product is at full speed from about 256 rows on
BOUND = 1e-3  # of the difference to released metrics: rounding swaps a few neighbours that are all but equally near
SPREAD = 2.0  # of the items about their class centre, in units of the spread of the centres


class Size(NamedTuple):
    """A retrieval benchmark as far as its cost goes. tail: sigma of the log-normal that class sizes follow."""

    items: int  # to search in; they are the queries too where queries is 0
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
    """Seconds and peak memory of `retrieval_metrics` and of a bare exact search over the same made-up items.

    Args:
        device: None for a GPU where there is one.
        backend: what searches for the metrics; the bare search is always torch's. It is given unit rows, which the
            metrics make for themselves.
        reference: the user's clone of the released implementation; adds "released_..." and "released_difference", the
            largest of any metric that both compute.

    Returns:
        For "bare" and "metrics": "..._s" (medians over repeats), "..._mib" (rise of the peak of memory while it runs)
        and "..._peak_mib" (that peak itself, data and interpreter included; on a GPU the GPU's); "ratio" of the two
        (the median of each turn's "ratios") and "cpu_ratio" (of processor time); the "k" of the bare search, the
        "largest_class" searched in, the "R@1" found, and what all this ran on.

    Raises:
        VptspError: a device, backend or clone that cannot be used here, or released metrics that differ from ours.
    """
    check_backend(backend)
    if reference is not None:
        clone_folder(reference)
    target = pick_device(device)
    device = "cpu" if target.type == "cpu" else str(target)
    data = clustered(size, device)
    tasks = {"bare": _bare_task(size, data), "metrics": _metrics_task(size, data, backend)}
    if reference is not None:
        tasks["released"] = _released_task(size, data, reference)
    results: dict[str, Any] = {}
    times: dict[str, list[Seconds]] = {name: [] for name in tasks}
    for _ in range(positive("repeats", repeats)):
        for name, task in tasks.items():
            times[name].append(_seconds(lambda name=name, task=task: results.update({name: task()}), target))
    difference = _difference(results["metrics"], results.get("released", {}))
    ratios = [ours.wall / bare.wall for bare, ours in zip(times["bare"], times["metrics"])]

    spawn, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    rises: dict[str, float] = {}
    for name in tasks:
        with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as process:
            memory = process.submit(_memory_mib, name, size, device, backend, threads, reference).result()
            rises[f"{name}_mib"], rises[f"{name}_peak_mib"] = memory
    largest = int(data.owned.bincount().max())
    return {
        **{key: value for key, value in size._asdict().items() if key != "ks"},
        **{"k": _bare_k(size, data.owned), "largest_class": largest, "backend": backend},
        **{f"{name}_s": round(statistics.median(each.wall for each in of), 3) for name, of in times.items()},
        "ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios],
        "cpu_ratio": _ratio(times["metrics"], times["bare"], "cpu"),
        **({} if reference is None else {"released_ratio": _ratio(times["released"], times["metrics"], "wall"),
                                         "released_difference": difference}),
        **rises,
        "R@1": round(results["metrics"]["R@1"], 4),
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(device),
        "threads": threads,
        "torch": torch.__version__,
    }  # fmt: skip


def bare_search(queries: Tensor, gallery: Tensor, k: int) -> Tensor:
    """Indices (n, k) of the gallery rows nearest each query, itself among them where it is one of these."""
    found = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), BARE_ROWS):
        found[start : start + BARE_ROWS] = (queries[start : start + BARE_ROWS] @ gallery.T).topk(k).indices
    return found


def class_sizes(items: int, classes: int, tail: float) -> Tensor:
    """Items of each class (classes,), from 2 up and `items` in all: 2 each, the rest shared out log-normally."""
    quantiles = (torch.arange(classes, dtype=torch.float64) + 0.5) / classes
    shares = (tail * torch.special.ndtri(quantiles)).exp().cumsum(0)
    return 2 + (shares / shares[-1] * (items - 2 * classes)).round().long().diff(prepend=torch.zeros(1).long())


def clustered(size: Size, device: str = "cpu", seed: int = 0) -> Data:
    """Embeddings about random class centres, their labels sorted."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(size.classes, size.dim, generator=generator)

    def drawn(n: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(size.classes).repeat_interleave(class_sizes(n, size.classes, size.tail))
        rows = torch.randn(n, size.dim, generator=generator)
        for start in range(0, n, 4096):  # in place, by parts: making the data shall leave no peak
            rows[start : start + 4096].mul_(SPREAD).add_(centres[labels[start : start + 4096]])
        return rows.to(device), labels.to(device)

    gallery = drawn(size.items)
    return Data(*drawn(size.queries), *gallery) if size.queries else Data(*gallery, None, None)


def _bare_k(size: Size, owned: Tensor) -> int:
    return min(size.items, max(*size.ks, int(owned.bincount().max())))


def _bare_task(size: Size, data: Data) -> Callable[[], Tensor]:
    """The bare search, ready to run on unit rows made beforehand."""
    queries = unit_rows("embeddings", data.embeddings)
    gallery = queries if data.gallery is None else unit_rows("gallery", data.gallery)
    k = _bare_k(size, data.owned)
    return lambda: bare_search(queries, gallery, k)


def _metrics_task(size: Size, data: Data, backend: str) -> Callable[[], dict[str, float]]:
    return lambda: retrieval_metrics(**data._asdict(), ks=size.ks, backend=backend)


def _released_task(size: Size, data: Data, reference: str | Path) -> Callable[[], dict[str, float]]:
    """On unit rows, which its model gives."""
    rows = unit_rows("embeddings", data.embeddings)
    gallery = None if data.gallery is None else unit_rows("gallery", data.gallery)
    return released_metrics(reference, rows, data.labels, size.ks, gallery, data.gallery_labels)


def _difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """The largest difference of a metric that both computed; VptspError where it is too large."""
    far = {name: abs(value - ours[name]) for name, value in theirs.items()}
    for name, value in far.items():
        if not value <= BOUND:
            raise VptspError(
                f"reference: its {name} is {theirs[name]:.6f}, ours {ours[name]:.6f} on the same embeddings; "
                "so the times cannot be compared; give a clone as it was released"
            )
    return max(far.values(), default=0.0)


class Seconds(NamedTuple):
    """How long a task took."""

    wall: float
    cpu: float  # of all threads of this process


def _ratio(of: list[Seconds], to: list[Seconds], which: str) -> float:
    return round(statistics.median(getattr(a, which) / getattr(b, which) for a, b in zip(of, to)), 3)


def _seconds(task: Callable[[], Any], device: torch.device) -> Seconds:
    wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    task()
    wait(device)
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def _memory_mib(
    name: str, size: Size, device: str, backend: str, threads: int, reference: str | Path | None
) -> tuple[float, float]:  # fmt: skip
    """Peak of memory while one task runs: its rise, and all of it; called in a process of its own."""
    torch.set_num_threads(threads)
    data = clustered(size, device)
    task: Callable[[], object]
    if name == "released" and reference is not None:
        task = _released_task(size, data, reference)
    else:
        task = _bare_task(size, data) if name == "bare" else _metrics_task(size, data, backend)
    del data  # the bare search needs its unit rows only
    before = _peak_bytes(device, reset=True)
    task()
    peak = _peak_bytes(device)
    return round((peak - before) / 2**20, 1), round(peak / 2**20, 1)


def _peak_bytes(device: str, reset: bool = False) -> int:
    """The most memory held so far; reset: let it start again from what is held now (where the system can)."""
    if device != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        import resource  # not there on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    # not ru_maxrss here: Linux hands a parent's peak on to the process it starts, even across exec
    return 1024 * int(next(line for line in status.read_text().splitlines() if "VmHWM" in line).split()[1])
