"""What retrieval metrics cost beside the search that they cannot do without.

The yardstick is a bare exact search: chunks of `q @ g.T` and `topk`, on rows that are unit rows already, with
the k that these metrics need (the largest K or class size). Both are timed by turns in one process, so that a
busy machine slows both; memory is measured in a fresh process for each, as the rise of its peak above what it
held with the data in place. `python -m vptsp_core.bench_metrics [n dim classes]` prints the result.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vptsp_core.metrics import retrieval_metrics
from vptsp_core.neighbours import unit_rows

KS = (1, 2, 4, 8)
BARE_ROWS = 512  # the product is at full speed from about 256 rows on
SPREAD = 2.0  # of the items about their class centre, in units of the spread of the centres


def benchmark_metrics(
    n: int = 60502, dim: int = 384, classes: int = 11316, device: str = "cpu", repeats: int = 3
) -> dict[str, Any]:
    """Seconds and peak memory of `retrieval_metrics` and of a bare exact search over the same made-up items.

    The defaults have the size of the SOP test set. Returns the medians "bare_s" and "metrics_s" over repeats
    taken by turns, "ratio" (the median of each turn's ratio, all of which are "ratios"), "cpu_ratio" (the same
    of CPU time, to look at where others use the CPU too), "bare_mib" and "metrics_mib" (rise of the peak of
    memory while it runs; on a GPU, of that GPU's), the "k" of the bare search, the "R@1" found, and what all
    this ran on. The n * dim * 4 bytes of data are not counted; the bare search is even given unit rows, which
    the metrics make for themselves.
    """
    rows, labels = clustered(n, dim, classes, device)
    unit = unit_rows("embeddings", rows)
    result: dict[str, float] = {}
    bare, full = [], []
    for _ in range(repeats):
        bare.append(_seconds(lambda: bare_search(unit, labels), device))
        full.append(_seconds(lambda: result.update(retrieval_metrics(rows, labels, ks=KS)), device))
    ratios = [b.wall / a.wall for a, b in zip(bare, full)]

    spawn, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    rises = {}
    for name in ("bare", "metrics"):
        with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as process:
            rises[f"{name}_mib"] = process.submit(_rise_mib, name, n, dim, classes, device, threads).result()
    return {
        **{"n": n, "dim": dim, "classes": classes, "k": _bare_k(labels)},
        "bare_s": round(statistics.median(t.wall for t in bare), 3),
        "metrics_s": round(statistics.median(t.wall for t in full), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "cpu_ratio": round(statistics.median(b.cpu / a.cpu for a, b in zip(bare, full)), 3),
        **rises,
        "R@1": round(result["R@1"], 4),
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(device),
        "threads": threads,
        "torch": torch.__version__,
    }


def bare_search(unit: Tensor, labels: Tensor) -> Tensor:
    """Indices (n, k) of each row's nearest rows, itself among them: the least that any such metric needs."""
    k = _bare_k(labels)
    found = torch.empty(len(unit), k, dtype=torch.int64, device=unit.device)
    for start in range(0, len(unit), BARE_ROWS):
        found[start : start + BARE_ROWS] = (unit[start : start + BARE_ROWS] @ unit.T).topk(k).indices
    return found


def clustered(n: int, dim: int, classes: int, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings (n, dim) about random class centres, and labels (n,), sorted; like SOP 2 to 12 a class."""
    generator = torch.Generator().manual_seed(seed)
    each = torch.arange(classes)
    spare = each.repeat(max(10, -(-n // classes)))
    spare = spare[torch.randperm(len(spare), generator=generator)]
    labels = torch.cat([each, each, spare])[:n].sort().values
    centres = torch.randn(classes, dim, generator=generator)
    rows = torch.randn(n, dim, generator=generator)
    for start in range(0, n, 4096):  # in place, by parts: making the data shall leave no peak
        rows[start : start + 4096].mul_(SPREAD).add_(centres[labels[start : start + 4096]])
    return rows.to(device), labels.to(device)


def _bare_k(labels: Tensor) -> int:
    return min(len(labels), max(*KS, int(labels.bincount().max())))


class Seconds(NamedTuple):
    wall: float
    cpu: float  # of all threads of this process


def _seconds(task: Callable[[], Any], device: str) -> Seconds:
    if device != "cpu":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    task()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def _rise_mib(name: str, n: int, dim: int, classes: int, device: str, threads: int) -> float:
    """Rise of the peak of memory while one task runs; called in a process of its own."""
    torch.set_num_threads(threads)
    rows, labels = clustered(n, dim, classes, device)
    if name == "bare":
        rows = unit_rows("embeddings", rows)
    before = _peak_bytes(device, reset=True)
    bare_search(rows, labels) if name == "bare" else retrieval_metrics(rows, labels, ks=KS)
    return round((_peak_bytes(device) - before) / 2**20, 1)


def _peak_bytes(device: str, reset: bool = False) -> int:
    """The most memory held so far; reset: let it start again from what is held now (where the system can)."""
    if device != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    # not ru_maxrss here: Linux hands a parent's peak on to the process it starts, even across exec
    return 1024 * int(next(line for line in status.read_text().splitlines() if "VmHWM" in line).split()[1])


if __name__ == "__main__":
    sizes = dict(zip(("n", "dim", "classes"), map(int, sys.argv[1:])))
    print(json.dumps(benchmark_metrics(**sizes), indent=1))  # type: ignore[arg-type]
