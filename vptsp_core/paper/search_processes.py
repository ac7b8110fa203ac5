"""The processes of a search on one machine; all they share is the database."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import torch

from vptsp_core.errors import ConfigError
from vptsp_core.system.processes import CONTEXT, end_with_parent


def devices_of(workers: int | str, device: str | None) -> list[str | None]:
    """One for each process.

    Raises:
        ConfigError: ``workers`` is neither a number from 1 nor ``"gpus"``.
    """
    if workers == "gpus":
        return [f"cuda:{at}" for at in range(torch.cuda.device_count())] or [device]
    if not isinstance(workers, int) or workers < 1:
        raise ConfigError(
            f"workers = {workers!r} must be a number or 'gpus'; for several machines call `tune` on each, "
            "with the same storage"
        )
    return [device] * workers


def side_by_side(work: Callable[..., None], devices: list[str | None], *arguments: Any) -> None:
    """``work(device, number of processes, *arguments)`` in a process a device. One that dies does not stop the others;
    all end when this process does."""
    processes = [CONTEXT.Process(target=_begin, args=(device, work, len(devices), arguments)) for device in devices]
    try:
        for each in processes:
            each.start()
        for each in processes:
            each.join()
    except KeyboardInterrupt:
        for each in processes:
            if each.pid is not None and each.is_alive():
                os.kill(each.pid, signal.SIGINT)
        for each in processes:
            each.join()
        raise


def _begin(device: str | None, work: Callable[..., None], of: int, arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    work(device, of, *arguments)
