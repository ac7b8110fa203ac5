"""What a training step costs, in time and memory (`python -m vptsp_core bench step`).

The first part makes the steps: ours in each form, and the released implementation's (`released.ReleasedBench`), on
random images and weights, which change no time. The second part measures them, and the third is the command.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vptsp_core.errors import ConfigError, check_choice
from vptsp_core.method import textbook
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel, make_optimizers
from vptsp_core.method.presets import parse_change, preset
from vptsp_core.method.step import TrainStep
from vptsp_core.paper.methods import TRAIN_CLASSES
from vptsp_core.paper.released import ReleasedBench
from vptsp_core.runs.compile import CompiledStep
from vptsp_core.runs.run import build_model
from vptsp_core.system.bars import bar
from vptsp_core.system.devices import autocast_dtype, device_name, pick_device
from vptsp_core.system.files import write_json

GPU_STEPS = 5  # per turn, so that the host runs ahead as it does in training
EXPLAINED = """\
memory: on a GPU the allocator's peak; on a CPU weights, gradients, optimisers and tensors saved for backward
ratio: time divided by eager's in the same turn; median and quartiles over turns (on a CPU, processor time)"""
K = TypeVar("K", bound=Hashable)


# ---- the steps -----------------------------------------------------------------------------------


class TextbookStep(TrainStep):
    """The training step with the textbook form of the loss: concatenate, run the block and drop."""

    def forward_backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Do what `TrainStep.forward_backward` does: images (B, 3, H, W), labels (B,)."""
        loss = self.loss(images, labels)
        self.scaler.scale(loss).backward()
        return loss.detach()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss in the trunk's precision, a scalar."""
        dtype = self.model.vit.autocast
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            return textbook.loss(self.model, images, labels)


FORMS: dict[str, type[TrainStep]] = {"eager": TrainStep, "compiled": CompiledStep, "textbook": TextbookStep}


class StepBench:
    """One training step of ours, to be measured.

    Args:
        form: one of `FORMS`; ``"eager"`` is our step as it is written.
        classes, class_table: passed to `random_model`.
    """

    def __init__(
        self, config: RunConfig, form: str = "eager", device: str | None = None,
        *, classes: int | None = None, class_table: str = "auto",
    ) -> None:  # fmt: skip
        check_choice("form", form, tuple(FORMS))
        self.form, self.device = form, pick_device(device)
        self.model = random_model(config, self.device, classes, class_table)
        self.images, self.labels = random_batch(config, self.device)
        self.classes = self.upcoming = torch.arange(config.batch // config.samples_per_class)  # on the CPU
        dtype = autocast_dtype(config.precision, self.device, self.model.vit.backbone.embed_dim)
        self.model.vit.autocast = dtype
        self.optimizers = make_optimizers(self.model)
        scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        self.train_step = FORMS[form](self.model, self.optimizers, scaler)

    def step(self) -> None:
        """Run forward, backward and both optimisers."""
        self.train_step(self.images, self.labels, self.classes, self.upcoming)

    def kept(self) -> tuple[Callable[[], Tensor], list[Tensor], Sequence[torch.optim.Optimizer]] | None:
        """Return the arguments of `kept_bytes`: the loss, the weights and buffers, and the optimisers.

        Return None for the compiled form, because its graph decides what it keeps.
        """
        if self.form == "compiled":
            return None
        loss = self.train_step.loss if isinstance(self.train_step, TextbookStep) else self.model.loss
        return partial(loss, self.images, self.labels), list(self.model.state_dict().values()), self.optimizers

    def facts(self) -> dict[str, Any]:
        """Return the trunk's ``precision`` and, if compiled, ``compile_s``: seconds, or None if compiling failed."""
        facts = {"precision": str(self.model.vit.autocast or torch.float32).removeprefix("torch.")}
        step = self.train_step
        return {**facts, "compile_s": step.compile_seconds} if isinstance(step, CompiledStep) else facts


Bench = StepBench | ReleasedBench


def random_model(
    config: RunConfig, device: torch.device, classes: int | None = None, class_table: str = "auto"
) -> MetricModel:
    """Return the run's model with random weights, in train mode. Raises ConfigError for a method that trains nothing.

    Args:
        classes: the number of training classes (default: `training_classes`).
        class_table: where the class prompts are stored: ``"device"``, ``"host"`` or ``"auto"``.
    """
    if config.method == "frozen":
        raise ConfigError("method = 'frozen' trains nothing, so there is no step to measure; choose another method")
    classes = classes or training_classes(config, device)
    return build_model(config.replace(weights="random"), classes, device, class_table).train()


def random_batch(config: RunConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, S, S) and labels (B,), the same in every call."""
    images = torch.randn(config.batch, 3, *[config.image_size] * 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(config.batch // config.samples_per_class).repeat_interleave(config.samples_per_class)
    return images.to(device), labels.to(device)


def training_classes(config: RunConfig, device: torch.device) -> int:
    """Return how many classes to measure with: those of the run's training set, on a CPU at most 256.

    On a CPU, more classes do not make a step slower.
    """
    known = TRAIN_CLASSES.get(config.dataset, 100)
    return max(min(known, 256) if device.type == "cpu" else known, config.batch // config.samples_per_class)


def make_forms(
    config: RunConfig, forms: Iterable[str] = tuple(FORMS), reference: str | Path | None = None,
    device: str | None = None,
) -> dict[str, Callable[[], Bench]]:  # fmt: skip
    """Return a function per form that makes its bench. All benches have the same images and weights.

    Args:
        forms: of our own code.
        reference: a clone of the released implementation. It adds the form ``"released"``, and for runs that are
            released with gradient checkpointing also ``"released, no checkpointing"``.
    """
    made: dict[str, Callable[[], Bench]] = {form: partial(StepBench, config, form, device) for form in forms}
    if reference is None:
        return made

    def released(checkpointing: bool | None = None) -> ReleasedBench:
        target = pick_device(device)
        return ReleasedBench(random_model(config, target), *random_batch(config, target), reference, checkpointing)

    made["released"] = released
    if config.method == "vptsp" and config.class_optimizer == "rowwise":
        made["released, no checkpointing"] = partial(released, False)
    return made


# ---- their cost ----------------------------------------------------------------------------------


def measure_steps(
    benches: Mapping[K, Callable[[], Bench]], *, device: str | None = None, steps: int = 100, warmup: int = 2,
    progress: bool = True, base: K | None = None,
) -> dict[K, dict[str, Any]]:  # fmt: skip
    """Measure training steps. They take turns in one process, so a busy machine slows all of them alike.

    Args:
        benches: a function per name that makes the bench.
        steps: the timed steps of each bench, after ``warmup`` untimed turns. On a GPU they are rounded up to whole
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
    made = {name: found for name, found in made.items() if found[0].facts().get("compile_s", 0) is not None}
    turns: dict[K, list[Turn]] = {name: [] for name in made}
    count = math.ceil(steps / GPU_STEPS) if target.type == "cuda" else steps
    for _ in bar(range(warmup + count), "measuring", show=progress, unit="turns"):
        for name, (bench, _) in made.items():
            turns[name].append(take_turn(bench.step, target))
    costs: dict[K, dict[str, Any]] = {}
    for name, (bench, memory) in made.items():
        ms = [each for turn in turns[name][warmup:] for each in turn.ms]
        speed = 1000 * len(bench.images) / statistics.median(ms)
        costs[name] = {**spread(ms, "ms"), "steps": len(ms), "images/s": speed, "memory_MB": memory, **bench.facts()}
        if base is not None:
            pairs = zip(turns[name][warmup:], turns[base][warmup:], strict=True)
            costs[name] |= spread([one.cost / other.cost for one, other in pairs], "ratio")
    return costs


def measure_step(config: RunConfig, *, device: str | None = None, steps: int = 5) -> dict[str, Any]:
    """Measure our step of one run, as `measure_steps` does."""
    make = partial(StepBench, config, device=device)
    return measure_steps({"step": make}, device=device, steps=steps, progress=False)["step"]


class Turn(NamedTuple):
    """Milliseconds of each timed step of a turn, and the turn's cost, from which ratios are computed.

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


# ---- the command ---------------------------------------------------------------------------------


def compare_forms(
    config: RunConfig, *, device: str | None = None, steps: int = 100, warmup: int = 2,
    forms: Sequence[str] = tuple(FORMS), reference: str | Path | None = None, progress: bool = False,
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
        "forms": measure_steps(made, device=device, steps=steps, warmup=warmup, progress=progress, base="eager"),
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
    found = compare_forms(
        config, device=args.device, steps=args.steps, forms=args.forms.split(","), reference=args.reference,
        progress=True,
    )  # fmt: skip
    print("batches of {batch}, {classes} classes, {device}, {threads} threads, torch {torch}".format_map(found))
    print(pd.DataFrame(found["forms"]).T.to_string(float_format="{:,.4g}".format, na_rep="-"))
    print(EXPLAINED)
    if args.json:
        write_json(args.json, found)
    return 0
