"""Time a task on a device."""

import time
from collections.abc import Callable

import torch


def seconds(task: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a task takes, until the device has finished it."""
    wait(device)
    start = time.perf_counter()
    task()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
