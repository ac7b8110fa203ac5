"""What it costs to keep the class prompts in host memory: a step against the same step with them on the device."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from vptsp_core.errors import ConfigError
from vptsp_core.method.config import RunConfig
from vptsp_core.paper.methods import TRAIN_CLASSES
from vptsp_core.paper.step_cost import StepBench, training_classes
from vptsp_core.system.devices import pick_device

from .clock import seconds

STEPS_A_TURN = 4  # between two waits for the device: only then can copies go on behind the next step


def compare_tables(
    config: RunConfig, classes: int | None = None, *, device: str | None = None, steps: int = 10, warmup: int = 1
) -> dict[str, Any]:
    """Steps with the table on the device and in host memory, alternately in one process, on the same random batches.

    Args:
        classes: C; default the training set's, on a CPU at most 256.

    Returns:
        ``ms`` a step for ``device`` and ``host`` (medians); ``ratio``: the median over turns of host / device, with its
        extremes; ``table_GB``: the table with its optimiser state; ``classes``, ``turns``.

    Raises:
        ConfigError: no row-wise class prompts, an unknown data set, or fewer classes than a batch holds.
    """
    if config.method != "vptsp" or config.class_optimizer != "rowwise":
        raise ConfigError("only row-wise class prompts can be in host memory; choose a preset such as inshop-vits16")
    count = config.batch // config.samples_per_class
    if classes is None:
        if config.dataset not in TRAIN_CLASSES:
            raise ConfigError(f"dataset = {config.dataset!r} has classes unknown here; give --classes")
        classes = training_classes(config, pick_device(device))
    if classes < count:
        raise ConfigError(f"--classes {classes} must be at least {count}, the classes of a batch")
    benches = {
        where: StepBench(config, device=device, classes=classes, class_table=where) for where in ("host", "device")
    }
    generator = torch.Generator().manual_seed(0)
    turns = warmup + steps
    batches = [torch.randperm(classes, generator=generator)[:count] for _ in range(turns * STEPS_A_TURN + 1)]

    def several(bench: StepBench, turn: int) -> None:
        for i in range(turn * STEPS_A_TURN, (turn + 1) * STEPS_A_TURN):
            bench.classes, bench.upcoming = batches[i], batches[i + 1]
            bench.labels = batches[i].repeat_interleave(config.samples_per_class).to(bench.device)
            bench.step()

    times: dict[str, list[float]] = {where: [] for where in benches}
    for turn in range(turns):
        for where, bench in benches.items():
            taken = seconds(lambda bench=bench, turn=turn: several(bench, turn), bench.device)
            if turn >= warmup:
                times[where].append(1000 * taken / STEPS_A_TURN)
    ratios = sorted(host / device for host, device in zip(times["host"], times["device"], strict=True))
    prompts = benches["host"].model.class_prompts
    assert prompts is not None
    return {
        "ms": {where: statistics.median(of) for where, of in times.items()},
        "ratio": statistics.median(ratios), "ratio min": ratios[0], "ratio max": ratios[-1], "turns": steps,
        "classes": classes, "table_GB": sum(table.nbytes for table in prompts.tables().values()) / 1e9,
    }  # fmt: skip
