"""Work shared out among processes, of this machine or of a Dask cluster.

The work can be done again if its process dies, and its results are stored where all processes see them. One process
does one thing at a time, since the seeds of torch are the process's.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import torch

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.runs.progress import every, under_way
from vptsp_core.system.bars import bar, is_log
from vptsp_core.system.distributed import launched
from vptsp_core.system.portable import physical_cores
from vptsp_core.system.processes import CONTEXT, end_children, end_with_parent, starting

T = TypeVar("T")
R = TypeVar("R")
Workers = int | str | None


def check_workers(workers: Workers) -> Workers:
    """``workers`` as `share_out` takes it; None for what comes to work in this process alone.
    Raises ConfigError: it is none of the three, there are no GPUs, or torchrun shares out the work already.
    """
    a_number = type(workers) is int and workers >= 1
    address = r"gpus|tcp://[^\s:/]+:\d+|tcp://\[[0-9a-fA-F:]+\]:\d+"
    if not (workers is None or a_number or (isinstance(workers, str) and re.fullmatch(address, workers))):
        raise ConfigError(f"workers = {workers!r} must be a number from 1, 'gpus', 'tcp://HOST:PORT' or None")
    if workers is not None and launched():
        raise ConfigError(f"workers = {workers!r}: under torchrun all processes share each run; leave workers out")
    if workers == "gpus" and not torch.cuda.is_available():
        raise ConfigError("workers = 'gpus': torch sees no GPU on this machine; give a number of processes")
    return None if workers == 1 or (workers == "gpus" and torch.cuda.device_count() == 1) else workers


def check_cluster(workers: Workers) -> None:
    """Raises VptspError where ``workers`` name a Dask cluster that does not answer or cannot be used."""
    if _is_cluster(workers):
        with _cluster().connected(workers):
            pass


def share_out(
    work: Callable[[T], R], items: Mapping[Path, T], workers: Workers, progress: bool = True, *, already: int = 0
) -> dict[Path, R | VptspError]:
    """``work`` done to every item: the result of each.

    A `VptspError` is the result of one item, and stops no other; any other exception ends it all. If a worker of a
    cluster dies, another one does its item again.

    Args:
        work: importable by its name in another process.
        items: by the folders of their runs, which are in one folder that all processes see.
        workers: as for `runs.run.many`; 1 is None. A process of this machine has no more threads than this one.
        progress: show a bar, and beside it what the others are training.
        already: items that were done before, for the bar.

    Raises:
        VptspError: see `check_workers`; the cluster cannot be used; or a process of this machine died.
    """
    workers = check_workers(workers)
    results: dict[Path, R | VptspError] = {}
    bars = bar(None, "runs", already + len(items), initial=already, show=progress, unit="runs")
    with bars as shown, contextlib.closing(_results(work, items, workers, shown)) as done:
        for folder, result in done:
            results[folder] = result
            shown.update()
            if progress and isinstance(result, VptspError):
                shown.write(f"{folder.name}: {result}", file=sys.stderr)
    return results


def _results(
    work: Callable[[T], R], items: Mapping[Path, T], workers: Workers, shown: Any
) -> Generator[tuple[Path, R | VptspError], None, None]:
    """In the order in which they are finished; beside the bar ``shown`` is what the others are training."""
    if workers is None or not items:
        for folder, item in items.items():
            yield folder, attempt(work, item)
        return

    def tell() -> None:
        line = under_way(items)
        if line != shown.postfix:  # else a log would fill with one line over and over
            shown.set_postfix_str(line, refresh=not is_log())

    pool = _cluster().pool(workers, next(iter(items)).parent) if _is_cluster(workers) else _processes(workers)
    with pool as executor, contextlib.nullcontext() if shown.disable else every(1, tell):
        with starting():
            futures = {executor.submit(attempt, work, item): folder for folder, item in items.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()


def attempt(work: Callable[[T], R], item: T) -> R | VptspError:
    """``work`` done to an item, or the error that says why not."""
    try:
        return work(item)
    except VptspError as error:
        return error


@contextlib.contextmanager
def _processes(workers: int | str) -> Iterator[Executor]:
    """Processes of this machine; they are ended where anything ends the work early."""
    gpus = _visible_gpus() if workers == "gpus" else [None] * int(workers)
    claims = CONTEXT.SimpleQueue()
    for gpu in gpus:
        claims.put(gpu)
    threads = max(1, min(torch.get_num_threads(), physical_cores() // len(gpus)))
    with ProcessPoolExecutor(len(gpus), CONTEXT, _begin, (claims, threads)) as executor:
        try:
            yield executor
        except BrokenProcessPool as error:
            raise VptspError(
                "a process died (short of memory?); the same command resumes the runs: start it again, with fewer "
                "workers if it dies again"
            ) from error
        except BaseException:
            end_children()
            raise


def _begin(claims: Any, threads: int) -> None:
    """In a new process: take a GPU that no other one has, and a share of the cores."""
    end_with_parent()
    torch.set_num_threads(threads)
    gpu = claims.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # nothing has asked for a GPU in this process yet


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else list(map(str, range(torch.cuda.device_count())))


def _is_cluster(workers: Workers) -> bool:
    return isinstance(workers, str) and workers.startswith("tcp://")


def _cluster() -> Any:
    try:
        from vptsp_core.runs import cluster
    except ImportError as error:
        raise VptspError(f"workers = 'tcp://...' needs the package distributed ({error}); install it") from error
    return cluster
