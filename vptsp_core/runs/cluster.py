"""The workers of a Dask cluster that a user has started. Imported only when needed: `distributed` is an extra."""

from __future__ import annotations

import contextlib
import functools
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import torch
from distributed import Client, KilledWorker, get_worker

from vptsp_core.errors import VptspError
from vptsp_core.system.files import writable_folder
from vptsp_core.system.portable import physical_cores


@contextlib.contextmanager
def connected(address: str, patience: float = 10) -> Iterator[Client]:
    """Connect to the scheduler at ``address``, and check that its workers have one thread each.
    Raises VptspError: nothing answers within ``patience`` seconds, there are no workers, one has several threads, or
    the cluster fails inside the block.
    """
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    try:
        # Without this check, Dask would try longer, and fill the log.
        socket.create_connection((host.strip("[]"), int(port)), timeout=patience).close()
        client = Client(address, timeout=patience, set_as_default=False)
    except OSError as error:  # a timeout is an OSError too
        raise VptspError(
            f"no Dask scheduler answers at {address} ({error}); start one with: dask scheduler --port {port}"
        ) from None
    start = f"dask worker {address} --nthreads 1 --memory-limit 0"
    with client:
        try:
            client.wait_for_workers(1, timeout=patience)
        except TimeoutError:
            raise VptspError(f"the cluster at {address} has no workers; start some with: {start}") from None
        for worker, threads in client.nthreads().items():
            if threads != 1:
                raise VptspError(f"worker {worker} has {threads} threads, runs need one; start it with: {start}")
        try:
            yield client
        except (CancelledError, KilledWorker) as error:
            raise VptspError(
                f"the cluster at {address} went away, or lost one worker after another (out of memory?); start it "
                "again, with fewer workers if they die again: the same command resumes the runs"
            ) from error


@contextlib.contextmanager
def cluster_submit(address: str, folder: Path) -> Iterator[Callable[..., Future]]:
    """Give a function ``submit(task, *args)`` that runs a task in a worker. All workers must see ``folder``.

    If a worker dies, Dask gives its task to another one, as often as the scheduler's settings allow.
    """
    with connected(address) as client:
        hosts = Counter(facts["host"] for facts in client.scheduler_info(n_workers=-1)["workers"].values())
        with tempfile.NamedTemporaryFile(dir=writable_folder(folder), prefix=".shared-") as file:
            yield functools.partial(client.get_executor(pure=False).submit, _do, Path(file.name).absolute(), hosts)


def _do(marker: Path, hosts: Mapping[str, int], task: Callable[..., Any], *args: Any) -> Any:
    """Run a task in a worker, with the worker's share of its machine's cores.
    Raises VptspError: the worker does not see the file ``marker``.
    """
    host = str(get_worker().address).removeprefix("tcp://").rsplit(":", 1)[0].strip("[]")
    if not marker.exists():
        raise VptspError(
            f"worker {host} does not see {marker.parent}; give --results a folder that all machines share, under the "
            "same path"
        )
    torch.set_num_threads(max(1, physical_cores() // hosts.get(host, 1)))
    return task(*args)
