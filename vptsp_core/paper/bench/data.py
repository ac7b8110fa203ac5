"""What decoding once is worth: images a second of the two pipelines, and what an epoch adds to its bare steps."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vptsp_core.data import Benchmark
from vptsp_core.data.batches import decoded, train_batches
from vptsp_core.data.loading import CROPS
from vptsp_core.errors import ConfigError
from vptsp_core.method.backbone import normalisation
from vptsp_core.method.config import RunConfig
from vptsp_core.method.sampler import ClassBalancedSampler
from vptsp_core.paper.bench import as_trains, check_trains
from vptsp_core.runs.run import build_model
from vptsp_core.runs.train import Trainer
from vptsp_core.system.devices import pick_device

PIPELINES = ("cached", "classic")
STATISTICS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # their values change no time


def compare_pipelines(
    config: RunConfig,
    benchmark: Benchmark,
    cache: Path,
    *,
    device: str | None = None,
    steps: int = 30,
    turns: int = 5,
    warmup: int = 1,
) -> dict[str, Any]:
    """Training batches of both pipelines, by turns in one process; nothing is trained. The cache is made before.

    Args:
        steps: batches a turn.

    Returns:
        Images a second of ``cached`` and ``classic`` (medians over turns); ``ratio``: the median over turns of cached
        / classic, with its extremes; ``turns``.

    Raises:
        ConfigError: a method that trains nothing, or an augmentation that only one of the pipelines has.
    """
    check_trains(config)
    if config.augmentation not in CROPS:
        raise ConfigError(
            f"augmentation = {config.augmentation!r}: bench data compares both pipelines, which share "
            f"{' and '.join(CROPS)} alone; choose one of them"
        )
    target = pick_device(device)
    configs = {name: config.replace(pipeline=name) for name in PIPELINES}
    images = {name: decoded(benchmark, each, cache).train for name, each in configs.items()}
    sampler = ClassBalancedSampler(
        benchmark.train.labels, config.batch, config.samples_per_class, config.seed, steps
    )  # fmt: skip
    speed: dict[str, list[float]] = {name: [] for name in PIPELINES}
    for turn in range(warmup + turns):
        for name in PIPELINES:
            start = time.perf_counter()
            for _ in train_batches(images[name], configs[name], STATISTICS, sampler, turn, target):
                pass
            _wait(target)
            if turn >= warmup:
                speed[name].append(steps * config.batch / (time.perf_counter() - start))
    ratios = sorted(a / b for a, b in zip(speed["cached"], speed["classic"], strict=True))
    return {
        **{f"{name} images/s": round(statistics.median(speed[name]), 1) for name in PIPELINES},
        **_spread(ratios), "threads": torch.get_num_threads(), "device": str(target),
    }  # fmt: skip


def epoch_over_steps(
    config: RunConfig, benchmark: Benchmark, cache: Path, *, device: str | None = None, steps: int = 30, turns: int = 5
) -> dict[str, Any]:
    """An epoch of ``steps`` against as many steps on one batch that is there already, by turns in one process.

    Returns:
        ``epoch s`` and ``steps s`` (medians), ``ratio`` of them with its extremes over the turns; ``turns``.

    Raises:
        ConfigError: a method that trains nothing.
    """
    check_trains(config)
    target = pick_device(device)
    images = decoded(benchmark, config, cache).train
    how = as_trains(config, len(images), target)
    config = config.replace(steps_per_epoch=steps)
    model = build_model(config.replace(weights="random"), images.num_classes, target)
    times: dict[str, list[float]] = {"epoch": [], "steps": []}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, images, Path(folder), lambda _: {}, progress=False, compile=how)
        statistics_ = normalisation(model.vit.backbone)
        batch = next(iter(train_batches(images, config, statistics_, trainer.sampler, 0, target)))
        classes = batch[1][:: config.samples_per_class].cpu()
        for turn in range(turns + 1):
            start = time.perf_counter()
            trainer.loop.train_epoch(turn)
            _wait(target)
            middle = time.perf_counter()
            for _ in range(steps):
                trainer.loop.step(*batch, classes, classes)
            _wait(target)
            if turn:  # the first warms up
                times["epoch"].append(middle - start)
                times["steps"].append(time.perf_counter() - middle)
    ratios = sorted(a / b for a, b in zip(times["epoch"], times["steps"], strict=True))
    medians = {f"{name} s": round(statistics.median(values), 3) for name, values in times.items()}
    return {**medians, **_spread(ratios), "steps": steps, "compiled": trainer.compiled()["compiled"],
            "device": str(target)}  # fmt: skip


def _spread(ratios: Sequence[float]) -> dict[str, Any]:
    return {"ratio": round(statistics.median(ratios), 3), "ratio min": round(ratios[0], 3),
            "ratio max": round(ratios[-1], 3), "turns": len(ratios)}  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
