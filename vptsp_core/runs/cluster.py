"""A Dask cluster that is already there. Nothing here starts schedulers or workers.

Imported only where a cluster is asked for: the package distributed is an extra.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Executor, Future
from pathlib import Path
from typing import Any

import torch
from distributed import Client, KilledWorker, get_worker

from vptsp_core.errors import VptspError
from vptsp_core.system.files import writable_folder
from vptsp_core.system.portable import physical_cores


@contextlib.contextmanager
def connected(address: str, patience: float = 10) -> Iterator[Client]:
    """A client of the scheduler at ``address``, which has workers that run one thing at a time.
    Raises VptspError: nobody answers within ``patience`` seconds, there are no workers, or one has several threads; or,
    from inside, the scheduler went away.
    """
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    try:
        # Dask by itself would try, and log, for longer.
        socket.create_connection((host.strip("[]"), int(port)), timeout=patience).close()
        client = Client(address, timeout=patience, set_as_default=False)
    except OSError as error:  # timeouts are OSErrors too
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
        except CancelledError as error:
            fault = "went away; start it again: the same command resumes the runs"
            raise VptspError(f"the cluster at {address} {fault}") from error
        except KilledWorker as error:
            fault = "lost one worker after another (short of memory?); start fewer: the same command resumes the runs"
            raise VptspError(f"the cluster at {address} {fault}") from error


@contextlib.contextmanager
def pool(address: str, folder: Path) -> Iterator[Executor]:
    """The workers of a cluster, which all see ``folder``. A task whose worker dies is done by another one; the
    scheduler gives up after its own number of deaths.
    """
    with connected(address) as client:
        with tempfile.NamedTemporaryFile(dir=writable_folder(folder), prefix=".shared-") as marker:
            yield _Workers(client, Path(marker.name).absolute())


class _Workers(Executor):
    """Each task first checks its worker: see `_settled`."""

    def __init__(self, client: Client, marker: Path) -> None:
        hosts = Counter(facts["host"] for facts in client.scheduler_info(n_workers=-1)["workers"].values())
        self.executor, self.given = client.get_executor(pure=False), (marker, hosts)

    def submit(self, task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        return self.executor.submit(_settled, *self.given, task, *args, **kwargs)


def _settled(marker: Path, hosts: Mapping[str, int], task: Callable[..., Any], *args: Any) -> Any:
    """In a worker: do a task with this worker's share of its machine's cores.
    Raises VptspError: it does not see the file ``marker``.
    """
    host = str(get_worker().address).removeprefix("tcp://").rsplit(":", 1)[0].strip("[]")
    if not marker.exists():
        raise VptspError(
            f"worker {host} does not see {marker.parent}; give --results a folder that all machines share, under the "
            "same path"
        )
    torch.set_num_threads(max(1, physical_cores() // hosts.get(host, 1)))
    return task(*args)
