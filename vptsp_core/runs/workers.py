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
from typing import Any, NamedTuple, TypeVar

import torch

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.runs.progress import PROGRESS, Watch, every
from vptsp_core.system.bars import bar, is_log
from vptsp_core.system.distributed import launched
from vptsp_core.system.portable import physical_cores
from vptsp_core.system.processes import CONTEXT, end_children, end_with_parent, starting

T = TypeVar("T")
R = TypeVar("R")
Workers = int | str | None
_DEATHS = 3  # in a row, with nothing finished between them: then something kills every process that tries


class Pool(NamedTuple):
    """Where to submit work; ``died`` is what a future raises if its process died, ``deaths`` how many to bear."""

    executor: Executor
    died: type[Exception]
    deaths: int


def check_workers(workers: Workers) -> Workers:
    """``workers`` as `share_out` takes it; None for what comes to work in this process alone.

    Raises:
        ConfigError: it is none of the three, there are no GPUs, or torchrun shares out the work already.
    """
    if isinstance(workers, bool) or not (
        workers is None
        or (isinstance(workers, int) and workers >= 1)
        or (isinstance(workers, str) and re.fullmatch(r"gpus|tcp://[^\s:/]+:\d+|tcp://\[[0-9a-fA-F:]+\]:\d+", workers))
    ):
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

    A `VptspError` is the result of one item, and stops no other; any other exception ends it all. If a process dies,
    its items are done again: on a cluster by another worker, here after all processes have been started again.

    Args:
        work: importable by its name in another process.
        items: by the folders of their runs, which are in one folder that all processes see.
        workers: None or 1: here, one after another. More: so many processes of this machine, each with its share of
            the cores and no more threads than this process. ``"gpus"``: one process a GPU. ``"tcp://HOST:PORT"``: the
            workers of that Dask cluster.
        progress: show a bar, and beside it what the others are training.
        already: items that were done before, for the bar.

    Raises:
        VptspError: see `check_workers`; the cluster cannot be used; or an item kills each process that tries it.
    """
    results: dict[Path, R | VptspError] = {}
    watch = Watch(lambda: items)
    with contextlib.ExitStack() as stack:
        shown = bar(None, "runs", already + len(items), initial=already, show=progress, unit="runs")
        stack.enter_context(shown)
        if progress and check_workers(workers) is not None:
            stack.enter_context(every(1, lambda: _show(shown, watch.line())))
        for folder, result in stack.enter_context(contextlib.closing(_results(work, items, workers))):
            results[folder] = result
            shown.update()
            if progress and isinstance(result, VptspError):
                shown.write(f"{folder.name}: {result}", file=sys.stderr)
    return results


def _show(shown: Any, line: str) -> None:
    if line != shown.postfix:  # else a log would fill with one line over and over
        shown.set_postfix_str(line, refresh=not is_log())


def _results(
    work: Callable[[T], R], items: Mapping[Path, T], workers: Workers
) -> Generator[tuple[Path, R | VptspError], None, None]:
    """In the order in which they are finished."""
    workers = check_workers(workers)
    if workers is None:
        for folder, item in items.items():
            yield folder, attempt(work, item)
        return
    left, deaths = dict(items), 0
    while left:
        death = None
        with _pool(workers, next(iter(left)).parent) as pool:
            with starting():
                futures = {pool.executor.submit(attempt, work, item): folder for folder, item in left.items()}
            for future in as_completed(futures):
                try:
                    result = future.result()
                except pool.died as error:
                    death = error
                    continue
                del left[futures[future]]
                deaths = 0
                yield futures[future], result
        if death is not None:
            deaths += 1
            if deaths == pool.deaths:
                begun = [folder for folder in left if (folder / PROGRESS).exists()] or left
                raise VptspError(
                    f"{', '.join(folder.name for folder in begun)}: the process died again and again (short of "
                    "memory?); give fewer workers, or none to see why"
                ) from death


def attempt(work: Callable[[T], R], item: T) -> R | VptspError:
    """``work`` done to an item, or the error that says why not."""
    try:
        return work(item)
    except VptspError as error:
        return error


@contextlib.contextmanager
def _pool(workers: int | str, folder: Path) -> Iterator[Pool]:
    if _is_cluster(workers):
        with _cluster().pool(workers, folder) as pool:
            yield pool
        return
    gpus = _visible_gpus() if workers == "gpus" else [None] * int(workers)
    claims = CONTEXT.SimpleQueue()
    for gpu in gpus:
        claims.put(gpu)
    threads = max(1, min(torch.get_num_threads(), physical_cores() // len(gpus)))
    executor = ProcessPoolExecutor(len(gpus), CONTEXT, _begin, (claims, threads))
    try:
        yield Pool(executor, BrokenProcessPool, _DEATHS)
    except BaseException:
        end_children()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


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
