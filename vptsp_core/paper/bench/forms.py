"""A training step in all its forms: ours as written and compiled, the textbook's, and the released implementation's."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vptsp_core.method.config import RunConfig
from vptsp_core.paper.bench import FORMS, StepBench, check_trains, fell_back, timed_turns
from vptsp_core.paper.bench.flops import product, step_flops
from vptsp_core.paper.bench.memory import Bench, with_memory
from vptsp_core.paper.bench.released import ReleasedBench
from vptsp_core.paper.bench.table import training_classes
from vptsp_core.paper.bench.terminal import columns
from vptsp_core.paper.bench.turns import cpu_ratios, ratios, spread
from vptsp_core.system.devices import pick_device

TRAINED = {"cuda": "compiled", "cpu": "eager"}  # ours as it trains
PRODUCT = "product"
COLUMNS = {"ms": "ms", "ms 25 %": "25 %", "ms 75 %": "75 %", "ms min": "min", "ms max": "max", "images/s": "images/s",
           "memory_MB": "MB", "TFLOP/s": "TFLOP/s", "share": "of product", "ratio": "ratio"}  # fmt: skip


def make_forms(
    config: RunConfig, forms: Sequence[str] = FORMS, reference: str | Path | None = None, device: str | None = None
) -> dict[str, Callable[[], Bench]]:
    """What makes each form's bench, all on the same images from the same weights.

    Of a data set with more classes than `training_classes` says, so many are enough to time a step.

    Args:
        forms: of our own code.
        reference: the user's clone; adds ``"released"``, and where that is released with gradient checkpointing also
            ``"released, no checkpointing"``.
    """
    check_trains(config)
    classes = training_classes(config, pick_device(device))
    made: dict[str, Callable[[], Bench]] = {
        form: functools.partial(StepBench, config, form, device, classes=classes) for form in forms
    }
    if reference is not None:
        released = functools.partial(ReleasedBench, config, reference, device, classes=classes)
        made["released"] = released
        if config.method == "vptsp" and config.class_optimizer == "rowwise":
            made["released, no checkpointing"] = functools.partial(released, checkpointing=False)
    return made


def compare_forms(
    config: RunConfig, *, device: str | None = None, steps: int = 100, warmup: int = 2,
    forms: Sequence[str] = FORMS, reference: str | Path | None = None, progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """All forms by turns in one process, and beside them a matrix product (`flops.product`).

    Args:
        steps: timed steps of each, after ``warmup`` untimed turns.
        forms, reference: see `make_forms`; the first of ``forms`` has to be ``"eager"``.

    Returns:
        ``forms``: for each ``ms`` and its `spread`, ``images/s``, ``memory_MB`` (`with_memory`), ``TFLOP/s`` (of the
        useful operations, `step_flops`), ``share`` (of the product's rate, the median over turns), ``ratio`` (to ours
        as it trains, the median over turns, with its spread), on a CPU ``CPU ratio`` likewise (of processor time, which
        other processes on a busy machine take no part in), for the compiled one ``compile_s``, for the released ones
        ``loss_difference``; ``base`` (what the ratios are to), ``GFLOP`` of a step, ``product_TFLOP/s``, ``steps``,
        ``turns``, and what all this ran on.

    Raises:
        ConfigError: a method that trains nothing, no step to measure, or a run that was not released.
        VptspError: the clone cannot be used, or computes another loss.
    """
    target = pick_device(device)
    made = {
        name: with_memory(make, target) for name, make in make_forms(config, forms, reference, device).items()
    }  # fmt: skip
    made = {name: (bench, memory) for name, (bench, memory) in made.items() if not fell_back(bench)}
    benches = {name: bench for name, (bench, _) in made.items()}
    eager = benches["eager"]
    assert isinstance(eager, StepBench)
    multiply, operations = product(eager.model, eager.images)
    tasks: Mapping[str, Callable[[], object]] = {
        **{name: bench.step for name, bench in benches.items()}, PRODUCT: multiply
    }  # fmt: skip
    times = timed_turns(tasks, target, steps, warmup, progress)
    flops = step_flops(eager.model, eager.images, eager.labels)
    rate = operations / _median(times[PRODUCT]) / 1e9  # of milliseconds: TFLOP/s
    base = trained if (trained := TRAINED.get(target.type, "eager")) in benches else "eager"
    found = {}
    for name, (bench, memory) in made.items():
        cost = spread([one for turn in times[name] for one in turn], "ms")
        share = statistics.median(ratios(times[PRODUCT], times[name])) * flops / operations
        found[name] = {
            **cost, "images/s": 1000 * config.batch / cost["ms"], "memory_MB": None if math.isnan(memory) else memory,
            "TFLOP/s": flops / cost["ms"] / 1e9, "share": share, **spread(ratios(times[name], times[base]), "ratio"),
            **_cpu_ratio(cpu_ratios(times[name], times[base])), **_own(bench),
        }  # fmt: skip
    dtype = str(eager.model.vit.autocast or torch.float32).removeprefix("torch.")
    return {
        "forms": found, "base": base, "GFLOP": flops / 1e9, "product_TFLOP/s": rate,
        "steps": sum(map(len, times[base])), "turns": len(times[base]),
        "batch": config.batch, "classes": training_classes(config, target), "precision": dtype,
        "device": "cpu" if target.type == "cpu" else torch.cuda.get_device_name(target),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip


def _median(turns: Sequence[Sequence[float]]) -> float:
    return statistics.median(one for turn in turns for one in turn)


def _cpu_ratio(found: Sequence[float]) -> dict[str, float]:
    return spread(found, "CPU ratio") if found else {}


def _own(bench: Bench) -> dict[str, Any]:
    if isinstance(bench, ReleasedBench):
        return {"loss_difference": bench.difference, "precision": bench.precision}
    seconds = bench.compile_seconds if isinstance(bench, StepBench) else None
    return {} if seconds is None else {"compile_s": seconds}


def table(found: Mapping[str, Any]) -> str:
    """What `compare_forms` found, to be read in a terminal."""
    forms = found["forms"]
    rows = [["", *COLUMNS.values(), "25 %", "75 %", "min", "max"]]
    for name, cost in forms.items():
        row = [name, *(_cell(key, cost[key]) for key in COLUMNS)]
        rows.append(row + [_cell("ratio", cost[f"ratio {part}"]) for part in ("25 %", "75 %", "min", "max")])
    lines = columns(rows)
    lines.insert(0, f"batches of {found['batch']}, {found['classes']} classes, {found['precision']}, "
                    f"{found['device']}, {found['threads']} threads, torch {found['torch']}: "
                    f"{found['steps']} steps of each in {found['turns']} turns")  # fmt: skip
    lines.append("MB: on a GPU the allocator's peak; on a CPU weights, gradients, optimisers, what the way back needs")
    lines.append(f"ratio: of a turn's time to {found['base']}'s, the median over turns and its spread; TFLOP/s: of the "
                 f"{found['GFLOP']:.1f} GFLOP a step needs; a matrix product of its size runs at "
                 f"{found['product_TFLOP/s']:.3g} TFLOP/s")  # fmt: skip
    if any("CPU ratio" in cost for cost in forms.values()):
        told = (f"{name} {cost['CPU ratio']:.2f} ({cost['CPU ratio 25 %']:.2f} to {cost['CPU ratio 75 %']:.2f})"
                for name, cost in forms.items())  # fmt: skip
        lines.append(f"the same ratio of processor time, and its quartiles: {', '.join(told)}")
    for name, cost in forms.items():
        if "compile_s" in cost:
            lines.append(f"{name}: its first step took {cost['compile_s']:.1f} s")
        if "loss_difference" in cost:
            difference = cost["loss_difference"]
            agree = f"{difference:.0e}" if difference else "the last bit"
            lines.append(f"{name}: computed in {cost['precision']}; losses agree to {agree}")
    return "\n".join(lines)


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "share":
        return f"{100 * value:.0f} %"
    digits = {"ratio": 2, "TFLOP/s": 3}.get(key, 1 if value < 100 else 0)
    return f"{value:.{digits}f}"
