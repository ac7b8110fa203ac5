"""Seconds of a task on a device."""

import time
from collections.abc import Callable

import torch


def seconds(task: Callable[[], object], device: torch.device) -> float:
    """By the wall clock, until the device has done all it was given."""
    wait(device)
    start = time.perf_counter()
    task()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Return when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
