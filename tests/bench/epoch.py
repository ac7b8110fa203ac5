"""Where the seconds of an epoch go: steps, what loading adds to them, evaluation, and compiling before it."""

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
from vptsp_core.paper.step_cost import random_model
from vptsp_core.runs.compile import compiles
from vptsp_core.runs.evaluate import evaluate
from vptsp_core.runs.train import Trainer
from vptsp_core.system.devices import pick_device

from .clock import seconds

FIRST = 3  # steps that make what later ones find made: compiled code, CUDA graphs, optimiser state
ALONE = 100  # steps without loading are timed at most; an epoch of more is reckoned from them


def measure_epoch(
    config: RunConfig, benchmark: Benchmark, cache: Path, *, device: str | None = None
) -> dict[str, Any]:  # fmt: skip
    """One epoch of training and one evaluation, weights at random (they change no time), images decoded before.

    Returns:
        ``epoch s``: training and evaluation; of these ``steps s``: as many steps on one batch that is there already;
        ``data s``: what training from the images took beyond them (about 0 where loading hides behind the steps);
        ``evaluation s``: embedding the test set, and the gallery, and the metrics. Beside them, once a run,
        ``compile s``: what the first three steps took beyond later ones, where a whole run of the config has them
        ``compiled``. ``images/s`` of training and ``evaluated images/s``; ``steps``, ``device`` and ``threads``.

    Raises:
        ConfigError: a method that trains nothing.
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
                    trainer.loop.step(*batch, classes, classes)

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
