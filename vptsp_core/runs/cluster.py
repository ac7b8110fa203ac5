"""A Dask cluster that is already there, as joblib uses it. Nothing here starts schedulers or workers.

Imported only where a cluster is asked for: the package distributed is an extra.
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

from distributed import Client, KilledWorker, get_worker
from joblib._dask import DaskDistributedBackend

from vptsp_core.errors import VptspError

__all__ = ["Backend", "KilledWorker", "connected", "host_of_this_worker", "workers_by_host"]


class Backend(DaskDistributedBackend):
    """joblib's backend, mended in two places: of a cluster with one worker (for now) it would make no use, and for a
    task that the scheduler gave up (its worker died again and again, or could not read it) it would wait for ever."""

    def effective_n_jobs(self, n_jobs: int) -> int:
        """How many tasks joblib may have at work: at least two."""
        return max(2, super().effective_n_jobs(n_jobs))

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> Any:
        """Send a task off; ``callback`` is told of its result, or of the exception that ended it."""
        future = super().submit(func, callback)

        def told(done: Any) -> None:
            if callback is not None and done.exception() is not None:
                callback(done.exception())

        future.add_done_callback(told)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        """The result that the callback was told of; raises what it was told of instead."""
        if isinstance(out, BaseException):
            raise out
        return super().retrieve_result_callback(out)


@contextlib.contextmanager
def connected(address: str, patience: float = 10) -> Iterator[Client]:
    """A client of the scheduler at ``address``, which has workers that run one thing at a time.

    Raises:
        VptspError: nobody answers within ``patience`` seconds, there are no workers, or one has several threads; or,
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
            raise VptspError(
                f"the cluster at {address} went away; start it again: the same command goes on where runs were"
            ) from error


def workers_by_host(client: Client) -> dict[str, int]:
    """How many workers each machine has, which share its cores."""
    return Counter(facts["host"] for facts in client.scheduler_info(n_workers=-1)["workers"].values())


def host_of_this_worker() -> str:
    """In a task: the machine it runs on, as `workers_by_host` names it."""
    return str(get_worker().address).removeprefix("tcp://").rsplit(":", 1)[0].strip("[]")
