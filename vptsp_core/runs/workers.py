"""Work in several processes, of this machine or of a Dask cluster.

The results are stored in a folder that all processes see. Work whose process died can therefore be done again. Each
process does one thing at a time, because torch has one random seed per process.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import torch

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.runs.progress import every, training_line
from vptsp_core.system.bars import bar, is_log
from vptsp_core.system.distributed import launched
from vptsp_core.system.portable import physical_cores
from vptsp_core.system.processes import CONTEXT, end_children, end_with_parent, starting

T = TypeVar("T")
R = TypeVar("R")
Workers = int | str | None


def check_workers(workers: Workers) -> Workers:
    """Check ``workers`` and return it, or None if all work would run in this process anyway.
    Raises ConfigError: `runs.run.many` takes no such value, torch sees no GPU, or torchrun already shares out the work.
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
    """Check that the Dask cluster answers, if ``workers`` is the address of one.
    Raises VptspError: it does not, or its workers cannot be used.
    """
    if cluster := _cluster(workers):
        with cluster.connected(workers):
            pass


def run_in_workers(
    work: Callable[[T], R], items: Mapping[Path, T], workers: Workers, progress: bool = True, *, already: int = 0
) -> dict[Path, R | VptspError]:
    """Call ``work`` with every item, and return the results by folder.

    If ``work`` raises a `VptspError`, the error is the item's result, and the other items continue. Any other exception
    ends everything. If a worker of a cluster dies, another worker does its item again.

    Args:
        work: a function that other processes can import.
        items: by the folder of their run. All processes see the parent of these folders.
        workers: as for `runs.run.many`. Each process of this machine has at most as many threads as this one.
        progress: show a bar, and beside it the runs that are training.
        already: number of items that were done before, for the bar.

    Raises:
        VptspError: see `check_workers`; the cluster cannot be used; or a process of this machine died.
    """
    workers = check_workers(workers)
    results: dict[Path, R | VptspError] = {}
    with bar(None, "runs", already + len(items), initial=already, show=progress, unit="runs") as shown:

        def show_training() -> None:
            line = training_line(items)
            if line != shown.postfix:  # otherwise a log would repeat the same line
                shown.set_postfix_str(line, refresh=not is_log())

        def finish(folder: Path, result: R | VptspError) -> None:
            results[folder] = result
            shown.update()
            if progress and isinstance(result, VptspError):
                shown.write(f"{folder.name}: {result}", file=sys.stderr)

        if workers is None or not items:
            for folder, item in items.items():
                finish(folder, attempt(work, item))
            return results
        cluster = _cluster(workers)
        pool = cluster.cluster_submit(workers, next(iter(items)).parent) if cluster else _processes(workers)
        with pool as submit, every(1, show_training) if progress else contextlib.nullcontext():
            with starting():
                futures = {submit(attempt, work, item): folder for folder, item in items.items()}
                submit(int)  # Python's pool notices the death of a new process only after one more call of submit
            for future in as_completed(futures):
                finish(futures[future], future.result())
    return results


def attempt(work: Callable[[T], R], item: T) -> R | VptspError:
    """Return the result of ``work``, or the `VptspError` that it raised."""
    try:
        return work(item)
    except VptspError as error:
        return error


@contextlib.contextmanager
def _processes(workers: int | str) -> Iterator[Callable[..., Future]]:
    """Give a function ``submit(task, *args)`` that runs a task in one of the new processes. An exception ends them."""
    gpus: list[str | None]
    if workers == "gpus":
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = [*named.split(",")] if named else [*map(str, range(torch.cuda.device_count()))]
    else:
        gpus = [None] * int(workers)
    unclaimed = CONTEXT.SimpleQueue()
    for gpu in gpus:
        unclaimed.put(gpu)
    threads = max(1, min(torch.get_num_threads(), physical_cores() // len(gpus)))
    with ProcessPoolExecutor(len(gpus), CONTEXT, _begin, (unclaimed, threads)) as executor:
        try:
            yield executor.submit
        except BrokenProcessPool as error:
            raise VptspError(
                "a process died (out of memory?); the same command resumes the runs: start it again, with fewer "
                "workers if it dies again"
            ) from error
        except BaseException:
            end_children()
            raise


def _begin(unclaimed: Any, threads: int) -> None:
    """Prepare a new process: give it a share of the cores, and a GPU that no other process uses."""
    end_with_parent()
    torch.set_num_threads(threads)
    gpu = unclaimed.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # this process has not used CUDA yet


def _cluster(workers: Workers) -> Any:
    """Return the module `runs.cluster` if ``workers`` is the address of a cluster, otherwise None."""
    if not isinstance(workers, str) or workers == "gpus":
        return None
    try:
        from vptsp_core.runs import cluster
    except ImportError as error:
        raise VptspError(f"workers = 'tcp://...' needs the package distributed ({error}); install it") from error
    return cluster
