"""Compare the two pipelines, cached and classic, in images per second."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from vptsp_core.data import Benchmark
from vptsp_core.data.batches import decoded, train_batches
from vptsp_core.data.loading import CROPS
from vptsp_core.errors import ConfigError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.sampler import ClassBalancedSampler
from vptsp_core.system.devices import pick_device

from .clock import seconds

PIPELINES = ("cached", "classic")
STATISTICS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # mean and deviation; they do not affect the time


def compare_pipelines(
    config: RunConfig, benchmark: Benchmark, cache: Path, *, device: str | None = None, steps: int = 30, turns: int = 5
) -> dict[str, Any]:
    """Load training batches with both pipelines, alternately in one process. Nothing is trained.

    Args:
        cache: folder of decoded images, which are decoded before the measurement.
        steps: batches per turn.
        turns: timed turns of each pipeline; one more turn warms up.

    Returns:
        Images per second of ``cached`` and ``classic`` (medians over turns), and ``ratio``: the median of cached /
        classic over turns, with minimum and maximum.

    Raises:
        ConfigError: only one of the pipelines has this augmentation.
    """
    if config.augmentation not in CROPS:
        raise ConfigError(f"augmentation = {config.augmentation!r}: both pipelines have only {' and '.join(CROPS)}")
    target = pick_device(device)
    configs = {name: config.replace(pipeline=name) for name in PIPELINES}
    images = {name: decoded(benchmark, each, cache).train for name, each in configs.items()}
    sampler = ClassBalancedSampler(benchmark.train.labels, config.batch, config.samples_per_class, config.seed, steps)

    def load(name: str, turn: int) -> None:
        for _ in train_batches(images[name], configs[name], STATISTICS, sampler, turn, target):
            pass

    speed: dict[str, list[float]] = {name: [] for name in PIPELINES}
    for turn in range(1 + turns):
        for name in PIPELINES:
            taken = seconds(lambda name=name, turn=turn: load(name, turn), target)
            if turn:
                speed[name].append(steps * config.batch / taken)
    ratios = sorted(a / b for a, b in zip(speed["cached"], speed["classic"], strict=True))
    return {
        **{f"{name} images/s": round(statistics.median(speed[name]), 1) for name in PIPELINES},
        "ratio": round(statistics.median(ratios), 3), "ratio min": round(ratios[0], 3),
        "ratio max": round(ratios[-1], 3), "turns": turns, "threads": torch.get_num_threads(), "device": str(target),
    }  # fmt: skip
