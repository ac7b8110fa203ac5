"""Measure the parts of an epoch: steps, loading, evaluation and compiling."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vptsp_core.data import Benchmark
from vptsp_core.data.batches import decoded, train_batches
from vptsp_core.method.backbone import normalisation
from vptsp_core.method.config import RunConfig
from vptsp_core.method.torch_state import torch_defaults
from vptsp_core.paper.step_bench import random_model
from vptsp_core.runs.compile import compiles
from vptsp_core.runs.evaluate import evaluate
from vptsp_core.runs.train import Trainer
from vptsp_core.system.devices import pick_device

from .clock import seconds

FIRST = 3  # steps that compile code, record CUDA graphs and create the optimiser state
ALONE = 100  # most steps that are timed without loading; a longer epoch is extrapolated from them


@torch_defaults()
def measure_epoch(config: RunConfig, benchmark: Benchmark, cache: Path, *, device: str | None = None) -> dict[str, Any]:
    """Measure one epoch of training and one evaluation, with random weights, from images that are decoded already.

    Returns:
        - ``epoch s``: training and evaluation;
        - ``steps s``: the same number of steps, but on one batch that is loaded already;
        - ``data s``: the rest of the training time, about 0 if loading runs behind the steps;
        - ``evaluation s``: embedding the test set and the gallery, and the metrics;
        - ``compile s``: the extra time of the first three steps, if a whole run of the config is ``compiled``;
        - ``images/s`` of training, ``evaluated images/s``, ``steps``, ``device`` and ``threads``.

    Raises:
        ConfigError: the method trains nothing.
        DataError: the training set is too small for the batch, or an image cannot be read.
    """
    target = pick_device(device)
    data = decoded(benchmark, config, cache)
    model = random_model(config, target, data.train.num_classes)
    steps_of_run = config.epochs * (config.steps_per_epoch or len(data.train) // config.batch)
    with tempfile.TemporaryDirectory() as folder:
        how = "on" if compiles("auto", target, steps_of_run) else "off"
        trainer = Trainer(model, data.train, Path(folder), lambda _: {}, progress=False, compile=how)
        statistics = normalisation(model.vit.backbone)
        batch = next(iter(train_batches(data.train, config, statistics, trainer.sampler, 0, target)))
        classes = batch[1][:: config.samples_per_class].cpu()
        steps = len(trainer.sampler)
        alone = min(steps, ALONE)

        def some(count: int) -> Callable[[], None]:
            def take() -> None:
                for _ in range(count):
                    trainer.loop.step(*batch, classes)

            return take

        first = seconds(some(FIRST), target)
        a_step = seconds(some(alone), target) / alone
        training = seconds(lambda: trainer.loop.train_epoch(0), target)
    evaluation = seconds(lambda: evaluate(model, data), target)
    evaluated = len(data.test) + (len(data.gallery) if data.gallery is not None else 0)
    found = {
        "epoch s": training + evaluation, "steps s": a_step * steps, "data s": training - a_step * steps,
        "evaluation s": evaluation,
    }  # fmt: skip
    if trainer.compiled()["compiled"]:
        found["compile s"] = first - FIRST * a_step
    return {
        **{name: round(value, 3) for name, value in found.items()},
        "images/s": round(steps * config.batch / training, 1), "evaluated images/s": round(evaluated / evaluation, 1),
        "steps": steps, "compiled": trainer.compiled()["compiled"],
        "device": "cpu" if target.type == "cpu" else torch.cuda.get_device_name(target),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
