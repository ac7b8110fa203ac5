"""Timing by turns: things that are compared run in one process, one after another and again, and a ratio is taken
within each turn, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

K = TypeVar("K", bound=Hashable)
Step = Callable[[], Any]
STEPS_A_TURN = {"cuda": 5}  # between two waits for the device, so that the host can run ahead as it does in training


class Turn(list[float]):
    """Milliseconds of the steps of a turn.

    Attributes:
        cpu: milliseconds of processor time that the turn took, of all threads of this process: what other processes
            take from a busy machine is not among it. (Threads that wait for others by spinning are.)
    """

    def __init__(self, times: Iterable[float], cpu: float = 0.0) -> None:
        super().__init__(times)
        self.cpu = cpu


def step_times(step: Step, device: torch.device, count: int = 1) -> Turn:
    """Milliseconds of each of ``count`` steps in a row.

    On a GPU between its own events, after one step more that nobody times and that gives it work ahead: the host waits
    for the device at the end alone, unless the step itself makes it wait. On a CPU by the wall clock.
    """
    wait(device)
    if device.type != "cuda":
        cpu, moments = time.process_time(), [time.perf_counter()]
        for _ in range(count):
            step()
            moments.append(time.perf_counter())
        cpu = 1000 * (time.process_time() - cpu)
        return Turn((1000 * (after - before) for before, after in itertools.pairwise(moments)), cpu)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    for event in events:
        step()
        event.record(torch.cuda.current_stream(device))
    wait(device)
    return Turn(before.elapsed_time(after) for before, after in itertools.pairwise(events))


def by_turns(
    steps: Mapping[K, Step], device: torch.device, turns: Iterable[int], warmup: int, count: int = 1
) -> dict[K, list[Turn]]:
    """Milliseconds of ``count`` steps of each a turn, a list a turn; the first ``warmup`` turns are dropped."""
    times: dict[K, list[Turn]] = {name: [] for name in steps}
    for turn in turns:
        for name, step in steps.items():
            taken = step_times(step, device, count)
            if turn >= warmup:
                times[name].append(taken)
    return times


def spread(values: Sequence[float], name: str) -> dict[str, float]:
    """``name`` (the median), ``name 25 %`` and ``name 75 %`` (quartiles), ``name min`` and ``name max``."""
    parts = {"": 50, " 25 %": 25, " 75 %": 75, " min": 0, " max": 100}
    return {name + part: float(np.percentile(values, at)) for part, at in parts.items()}


def ratios(times: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> list[float]:
    """Of each turn: how many times the ``base``'s time."""
    return [sum(one) / sum(other) for one, other in zip(times, base, strict=True)]


def cpu_ratios(turns: Sequence[Turn], base: Sequence[Turn]) -> list[float]:
    """`ratios` of processor time; none where it was not taken (a GPU)."""
    return [one.cpu / other.cpu for one, other in zip(turns, base, strict=True) if one.cpu and other.cpu]


def wait(device: torch.device) -> None:
    """Return when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
