"""Work shared out among processes, of this machine or of a Dask cluster; joblib hands it out.

What is asked of the work: it can be done again after its process died, and its results lie where all see them.
One process does one thing at a time, since the seeds of torch are the process's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import joblib
import torch
from joblib.externals.loky import get_reusable_executor

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.runs.progress import PROGRESS, Watch, every
from vptsp_core.system.bars import bar, is_log
from vptsp_core.system.distributed import launched
from vptsp_core.system.files import writable_folder
from vptsp_core.system.signals import end_with

T = TypeVar("T")
R = TypeVar("R")
Workers = int | str | None
_DEATHS = 3  # in a row, with nothing finished between them: then something kills whoever tries
_alone = threading.Lock()
_claims: list[IO[bytes]] = []  # the lock file of this process's GPU, open for as long as the process lives


class _Died(Exception):
    """A process died and others with it, or so many that the scheduler gave up (``for_good``)."""

    for_good = False


@dataclass(frozen=True)
class _Place:
    """What a process needs to know before it starts to work; travels with each task."""

    sharers: Mapping[str, int]  # processes that share a machine's cores, by machine; "" is this one
    shared: Path  # a file that every process must see
    parent: int | None = None  # the process that waits for what comes of it; a worker of a cluster has none
    gpus: tuple[Path, ...] = ()  # lock files named as CUDA_VISIBLE_DEVICES names the GPUs: each process takes one

    def settle(self) -> None:
        """Make this process one of several: its threads, its GPU.

        Raises:
            VptspError: it does not see the folder of the results.
        """
        host = ""
        if "" not in self.sharers:
            from vptsp_core.runs.cluster import host_of_this_worker

            host = host_of_this_worker()
        if not self.shared.exists():
            raise VptspError(
                f"worker {host or os.getpid()} does not see {self.shared.parent}; give --results a folder that all "
                "machines share, under the same path"
            )
        cores = joblib.cpu_count(only_physical_cores=True)
        torch.set_num_threads(max(1, cores // self.sharers.get(host, 1)))
        if self.parent is not None:
            end_with(self.parent)
        if self.gpus and not _claims:
            _claims.append(_claimed(self.gpus))


def check_workers(workers: Workers) -> Workers:
    """``workers`` as `share_out` takes it; what comes to work in this process alone is None.

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
    if isinstance(workers, str) and workers.startswith("tcp://"):
        with _cluster(workers):
            pass


def share_out(
    work: Callable[[T], R], items: Mapping[Path, T], workers: Workers, progress: bool = True, *, already: int = 0
) -> dict[Path, R | VptspError]:
    """``work`` done to every item: what came of each.

    A `VptspError` is what came of one item, and stops no other; any other exception ends it all. When a process dies
    its items are done again, on a cluster by another worker, here after a new start of all.

    Args:
        work: importable by its name in another process.
        items: by the folders of their runs, which lie side by side, and which all processes see.
        workers: None or 1: here, one after another. More: so many processes of this machine, each with its share of
            the cores. ``"gpus"``: one process a GPU. ``"tcp://HOST:PORT"``: the workers of that Dask cluster.
        progress: show a bar, and beside it what the others are at.
        already: items that were done before, for the bar.

    Raises:
        VptspError: see `check_workers`; the cluster cannot be used; or what was left kept killing its process.
    """
    came: dict[Path, R | VptspError] = {}
    watch = Watch(lambda: items)
    with contextlib.ExitStack() as stack:
        shown = bar(None, "runs", already + len(items), initial=already, show=progress, unit="runs")
        stack.enter_context(shown)
        if progress and check_workers(workers) is not None:
            stack.enter_context(every(1, lambda: _show(shown, watch.line())))
        for folder, outcome in stack.enter_context(contextlib.closing(_outcomes(work, items, workers))):
            came[folder] = outcome
            shown.update()
            if progress and isinstance(outcome, VptspError):
                shown.write(f"{folder.name}: {outcome}", file=sys.stderr)
    return came


def _show(shown: Any, line: str) -> None:
    if line != shown.postfix:  # else a log would fill with one line over and over
        shown.set_postfix_str(line, refresh=not is_log())


def _outcomes(
    work: Callable[[T], R], items: Mapping[Path, T], workers: Workers
) -> Generator[tuple[Path, R | VptspError], None, None]:
    """As they come."""
    workers = check_workers(workers)
    if workers is None:
        for folder, item in items.items():
            yield folder, _attempt(work, item)
        return
    left, deaths = dict(items), 0
    while left:
        try:
            with _processes(workers, next(iter(left)).parent) as (parallel, place):
                for folder, outcome in parallel(joblib.delayed(_task)(place, work, *each) for each in left.items()):
                    del left[folder]
                    deaths = 0
                    yield folder, outcome
        except _Died as error:
            deaths += 1
            if deaths == _DEATHS or error.for_good:
                begun = [folder for folder in left if (folder / PROGRESS).exists()] or left
                raise VptspError(
                    f"{', '.join(folder.name for folder in begun)}: the process died again and again (short of "
                    "memory?); give fewer workers, or none to see why"
                ) from error


def _task(place: _Place, work: Callable[[T], R], folder: Path, item: T) -> tuple[Path, R | VptspError]:
    with _alone:
        place.settle()
        return folder, _attempt(work, item)


def _attempt(work: Callable[[T], R], item: T) -> R | VptspError:
    try:
        return work(item)
    except VptspError as error:
        return error


@contextlib.contextmanager
def _processes(workers: int | str, folder: Path) -> Iterator[tuple[joblib.Parallel, _Place]]:
    # One task at a time, all of them known from the start, results as they come.
    options: dict[str, Any] = dict(batch_size=1, pre_dispatch="all", return_as="generator_unordered")
    with contextlib.ExitStack() as stack:
        marker = stack.enter_context(tempfile.NamedTemporaryFile(dir=writable_folder(folder), prefix=".shared-"))
        shared = Path(marker.name).absolute()
        if isinstance(workers, str) and workers.startswith("tcp://"):
            backend, sharers = stack.enter_context(_cluster(workers))
            yield joblib.Parallel(backend=backend, **options), _Place(sharers, shared)
            return
        locks = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vptsp-gpus-")))
        gpus = tuple(locks / name for name in _visible_gpus()) if workers == "gpus" else ()
        count = len(gpus) or int(workers)
        try:
            place = _Place({"": count}, shared, os.getpid(), gpus)
            yield joblib.Parallel(n_jobs=count, backend="loky", **options), place
        except BrokenProcessPool as error:
            raise _Died from error
        finally:
            get_reusable_executor().shutdown(wait=True)  # idle processes would keep their memory, and their GPUs


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[tuple[Any, dict[str, int]]]:
    try:
        from vptsp_core.runs import cluster
    except ImportError as error:
        raise VptspError(f"workers = {address!r} needs the package distributed ({error}); install it") from error
    with cluster.connected(address) as client:
        try:
            yield cluster.Backend(client=client), cluster.workers_by_host(client)
        except cluster.KilledWorker as error:
            died = _Died()
            died.for_good = True
            raise died from error


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else list(map(str, range(torch.cuda.device_count())))


def _claimed(gpus: tuple[Path, ...]) -> IO[bytes]:
    """Take the first GPU that no other process holds, for as long as this one lives; what it is held by.

    Raises:
        VptspError: all are taken.
    """
    for gpu in gpus:
        file = open(gpu, "ab")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu.name  # nothing has asked for a GPU in this process yet
            return file
        file.close()
    raise VptspError(f"all {len(gpus)} GPUs are taken by other processes of these runs")
