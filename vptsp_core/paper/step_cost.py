"""What a training step costs, in time and memory (`python -m vptsp_core bench step`).

`step_bench` makes the steps.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vptsp_core.errors import ConfigError, check_choice
from vptsp_core.method.config import RunConfig
from vptsp_core.method.presets import parse_change, preset
from vptsp_core.method.torch_state import torch_defaults
from vptsp_core.paper.step_bench import FORMS, Bench, StepBench, make_forms, training_classes
from vptsp_core.system.bars import bar
from vptsp_core.system.devices import device_name, pick_device
from vptsp_core.system.files import write_json

WARMUP = 2  # untimed turns
GPU_STEPS = 5  # per turn, so that the host runs ahead as it does in training
EXPLAINED = """\
memory: on a GPU the allocator's peak; on a CPU weights, gradients, optimisers and tensors saved for backward
ratio: time divided by eager's in the same turn; median and quartiles over turns (on a CPU, processor time)"""
K = TypeVar("K", bound=Hashable)


@torch_defaults()
def measure_steps(
    benches: Mapping[K, Callable[[], Bench]], *, device: str | None = None, steps: int = 100, progress: bool = True,
    base: K | None = None,
) -> dict[K, dict[str, Any]]:  # fmt: skip
    """Measure training steps. They take turns in one process, so a busy machine slows all of them alike.

    Args:
        benches: a function per name that makes the bench.
        steps: the timed steps of each bench, after `WARMUP` untimed turns. On a GPU they are rounded up to whole
            turns of `GPU_STEPS`.
        base: the name of the bench that the others are compared with.

    Returns:
        Per name ``ms``, ``steps``, ``images/s``, ``memory_MB`` (`with_memory`) and the bench's `facts`. With ``base``
        also the ``ratio`` to it within a turn. ``ms`` and ``ratio`` have quartiles (`spread`). A step that could not be
        compiled is left out, and `CompiledStep` has warned of it.

    Raises:
        ConfigError: ``steps`` is below 1.
    """
    if steps < 1:
        raise ConfigError(f"steps = {steps} must be at least 1")
    target = pick_device(device)
    made = {name: with_memory(make, target) for name, make in benches.items()}
    made = {name: each for name, each in made.items() if each[0].facts().get("compile_s", 0) is not None}
    turns: dict[K, list[Turn]] = {name: [] for name in made}
    count = math.ceil(steps / GPU_STEPS) if target.type == "cuda" else steps
    for _ in bar(range(WARMUP + count), "measuring", show=progress, unit="turns"):
        for name, (bench, _) in made.items():
            turns[name].append(take_turn(bench.step, target))
    costs: dict[K, dict[str, Any]] = {}
    for name, (bench, memory) in made.items():
        ms = [each for turn in turns[name][WARMUP:] for each in turn.ms]
        speed = 1000 * len(bench.images) / statistics.median(ms)
        costs[name] = {**spread(ms, "ms"), "steps": len(ms), "images/s": speed, "memory_MB": memory, **bench.facts()}
        if base is not None:
            pairs = zip(turns[name][WARMUP:], turns[base][WARMUP:], strict=True)
            costs[name] |= spread([one.cost / other.cost for one, other in pairs], "ratio")
    return costs


def measure_step(config: RunConfig, *, steps: int) -> dict[str, Any]:
    """Measure our step of one run, as `measure_steps` does."""
    return measure_steps({"step": partial(StepBench, config)}, steps=steps, progress=False)["step"]


class Turn(NamedTuple):
    """Milliseconds of each timed step of a turn, and the turn's cost in milliseconds, for the ratios.

    On a CPU the cost is the processor time of this process, because other processes do not change it.
    """

    ms: list[float]
    cost: float


def take_turn(step: Callable[[], object], device: torch.device) -> Turn:
    """Time one step; on a GPU, time `GPU_STEPS` steps by events, after one untimed step."""
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(GPU_STEPS + 1)]
        for event in events:
            step()
            event.record(torch.cuda.current_stream(device))
        torch.cuda.synchronize(device)
        ms = [before.elapsed_time(after) for before, after in itertools.pairwise(events)]
        return Turn(ms, sum(ms))
    start, busy = time.perf_counter(), time.process_time()
    step()
    if device.type == "mps":
        torch.mps.synchronize()
    took = 1000 * (time.perf_counter() - start)
    return Turn([took], 1000 * (time.process_time() - busy) if device.type == "cpu" else took)


def spread(values: Sequence[float], name: str) -> dict[str, float]:
    """Return ``name`` (the median), ``name 25 %`` and ``name 75 %`` (the quartiles)."""
    return {name + part: float(np.percentile(values, at)) for part, at in {"": 50, " 25 %": 25, " 75 %": 75}.items()}


def with_memory(make: Callable[[], Bench], device: torch.device) -> tuple[Bench, float | None]:
    """Return a bench that has taken its first steps, and its memory in 10^6 bytes.

    On a GPU the memory is the allocator's peak in these steps, without earlier allocations. On a CPU it is
    `kept_bytes`, or None if they cannot be counted.
    """
    if device.type != "cuda":
        bench = make()
        bench.step()  # creates the optimisers' state
        kept = bench.kept()
        return bench, None if kept is None else kept_bytes(*kept) / 1e6
    others = torch.cuda.memory_allocated(device)
    bench = make()
    gc.collect()  # frees what only the constructor needed
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):  # a CUDA graph is recorded in the second or third step
        bench.step()
    return bench, (torch.cuda.max_memory_allocated(device) - others) / 1e6


def kept_bytes(loss: Callable[[], Tensor], tensors: list[Tensor], optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Return the bytes of weights and buffers (``tensors``), gradients, optimiser state and tensors saved for backward.

    Each storage counts once. Temporary tensors do not count. The gradients are dropped at the end.
    """
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    moments = [each for optimizer in optimizers for state in optimizer.state.values() for each in state.values()]
    for tensor in (*tensors, *filter(torch.is_tensor, moments)):
        count(tensor)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        value = loss()
    value.backward()
    gradients = 0
    for optimizer in optimizers:
        learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients += sum(parameter.grad.nbytes for parameter in learned if parameter.grad is not None)
        optimizer.zero_grad(set_to_none=True)
    return sum(storages.values()) + gradients


def compare_forms(
    config: RunConfig, *, device: str | None = None, steps: int = 100, forms: Sequence[str] = tuple(FORMS),
    reference: str | Path | None = None, progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Measure the steps of `make_forms`, with ratios to ``eager``.

    Returns:
        ``forms`` (the result of `measure_steps`), ``batch``, ``classes``, ``device``, ``threads`` and ``torch``.

    Raises:
        ConfigError: a form is unknown, or ``eager`` is missing.
    """
    for form in forms:
        check_choice("--forms", form, tuple(FORMS))
    if "eager" not in forms:
        raise ConfigError(f"--forms {','.join(forms)} must name eager, which the others are compared with")
    target = pick_device(device)
    made = make_forms(config, forms, reference, device)
    return {
        "forms": measure_steps(made, device=device, steps=steps, progress=progress, base="eager"),
        "batch": config.batch, "classes": training_classes(config, target), "device": device_name(target),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of costs and, with ``--json``, also write it. Return the exit status."""
    parser = argparse.ArgumentParser("python -m vptsp_core bench", description="Measure what a training step costs.")
    step = parser.add_subparsers(dest="kind", required=True).add_parser(
        "step", help="time our step as written, compiled, in textbook form and as released, alternately"
    )
    step.add_argument("--preset", default="cub200-vits16")
    step.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
                      help="e.g. batch=16")  # fmt: skip
    step.add_argument("--steps", type=int, default=100, help="timed steps of each form (default: 100)")
    step.add_argument("--forms", default=",".join(FORMS), metavar="F,...",
                      help="our forms to time (default: %(default)s; compiling takes minutes on a CPU)")  # fmt: skip
    step.add_argument("--reference", metavar="DIR", help="your clone of the released implementation, to time it too")
    step.add_argument("--device", help="default: a GPU if there is one")
    step.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    args = parser.parse_args(argv)
    config = preset(args.preset, **dict(parse_change(change) for change in args.changes))
    measured = compare_forms(
        config, device=args.device, steps=args.steps, forms=args.forms.split(","), reference=args.reference,
        progress=True,
    )  # fmt: skip
    print("batches of {batch}, {classes} classes, {device}, {threads} threads, torch {torch}".format_map(measured))
    print(pd.DataFrame(measured["forms"]).T.to_string(float_format="{:,.4g}".format, na_rep="-"))
    print(EXPLAINED)
    if args.json:
        write_json(args.json, measured)
    return 0
