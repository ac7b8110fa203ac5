"""Measured cost of a training step, and of ours against the textbook form."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vptsp_core import textbook
from vptsp_core.config import RunConfig
from vptsp_core.devices import autocast_dtype, pick_device, to_device
from vptsp_core.errors import ConfigError
from vptsp_core.study import build_model
from vptsp_core.tuning import MetricModel, make_optimizers

K = TypeVar("K", bound=Hashable)
FORMS: dict[str, Callable[[MetricModel, Tensor, Tensor], Tensor]] = {
    "ours": lambda model, images, labels: model.loss(images, labels),
    "textbook": textbook.loss,
}


class StepBench:
    """One training step on random images, of a model with random weights (neither changes the time).

    Raises:
        ConfigError: a method that trains nothing.
    """

    def __init__(
        self, config: RunConfig, form: str = "ours", device: str | None = None,
        *, classes: int | None = None, class_table: str = "auto",
    ) -> None:  # fmt: skip
        check_trains(config)
        self.device = pick_device(device)
        classes = classes or max(100, config.batch // config.samples_per_class)
        self.model = build_model(config.replace(weights="random"), classes, self.device, class_table).train()
        self.model.vit.autocast = autocast_dtype(config.precision, self.device)
        self.form = FORMS[form]
        self.optimizers = make_optimizers(self.model)
        generator = torch.Generator().manual_seed(0)
        side = (config.batch, 3, config.image_size, config.image_size)
        self.images = torch.randn(side, generator=generator).to(self.device)
        self.choose(torch.arange(config.batch // config.samples_per_class))

    def choose(self, classes: Tensor, upcoming: Tensor | None = None) -> None:
        """The classes of the next `step`, and of the one after: (C',) int64 on the CPU."""
        self.classes, self.upcoming = classes, upcoming
        labels = classes.repeat_interleave(self.model.config.samples_per_class)
        self.labels = to_device(labels, self.device)

    def step(self) -> None:
        """Forward, backward and both optimisers."""
        prompts = self.model.class_prompts
        if prompts is not None:
            prompts.swap_in(self.classes, self.optimizers[0], self.upcoming)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.form(self.model, self.images, self.labels).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        if prompts is not None:
            prompts.swap_out(self.classes, self.optimizers[0])

    def milliseconds(self) -> float:
        """Wall time of one step, the device's work included."""
        self.wait()
        start = time.perf_counter()
        self.step()
        self.wait()
        return 1000 * (time.perf_counter() - start)

    def memory_bytes(self) -> int:
        """Peak of a step on a GPU, as its allocator counts it. On the CPU: all weights, gradients and optimiser
        state, and every tensor kept for the backward pass, each storage once (exact, but for passing temporaries)."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.step()
            return torch.cuda.max_memory_allocated(self.device)
        storages: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        for tensor in self.model.state_dict().values():
            count(tensor)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = self.form(self.model, self.images, self.labels)
        loss.backward()
        learned = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.grad is not None)
        states = {"sgd": 1, "adam": 2, "adamw": 2}[self.model.config.optimizer]
        return sum(storages.values()) + learned * (1 + states)

    def wait(self) -> None:
        """Return when the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def check_trains(config: RunConfig) -> None:
    """Refuse a run without training steps.

    Raises:
        ConfigError: naming the method.
    """
    if config.method == "frozen":
        raise ConfigError("method = 'frozen' trains nothing, so there is no step to measure; choose another method")


def measure_step(
    config: RunConfig, *, form: str = "ours", device: str | None = None, steps: int = 5, warmup: int = 2
) -> dict[str, float]:
    """Cost of one training step.

    Args:
        form: ``"ours"`` or ``"textbook"`` (`vptsp_core.textbook`).
        steps: timed steps, after ``warmup`` untimed ones.

    Returns:
        ``ms`` (median), ``ms min``, ``ms max``, ``images/s`` and ``memory_MB`` (10^6 bytes, `StepBench.memory_bytes`).
    """
    bench = StepBench(config, form, device)
    for _ in range(warmup):
        bench.step()
    times = [bench.milliseconds() for _ in range(steps)]
    median = statistics.median(times)
    return {
        "ms": median, "ms min": min(times), "ms max": max(times),
        "images/s": 1000 * config.batch / median, "memory_MB": bench.memory_bytes() / 1e6,
    }  # fmt: skip


def measure_steps(
    configs: Mapping[K, RunConfig], *, device: str | None = None, steps: int = 100, warmup: int = 2,
    progress: bool = True,
) -> dict[K, dict[str, float]]:  # fmt: skip
    """Cost of a training step of several runs, by turns in one process, so that a busy machine slows all alike.

    Args:
        steps: timed steps of each, after ``warmup`` untimed ones.

    Returns:
        For each run ``ms`` (median), ``ms 25 %`` and ``ms 75 %`` (quartiles), ``steps``, and ``memory_MB`` (10^6 bytes,
        `StepBench.memory_bytes`, of that run alone).

    Raises:
        ConfigError: a method that trains nothing, or no step to measure.
    """
    if steps < 1:
        raise ConfigError(f"steps = {steps} must be at least 1")
    benches, memory, target = {}, {}, pick_device(device)
    for name, config in configs.items():
        # A GPU's allocator counts what the earlier ones hold, too; on a CPU each counts its own tensors.
        others = torch.cuda.memory_allocated(target) if target.type == "cuda" else 0
        benches[name] = StepBench(config, device=device)
        benches[name].step()  # the optimiser's state is made in the first one
        memory[name] = (benches[name].memory_bytes() - others) / 1e6
    times = _by_turns(benches, tqdm(range(warmup + steps), "turns", disable=not progress), warmup)
    found = {}
    for name, taken in times.items():
        low, median, high = np.percentile(taken, (25, 50, 75))
        found[name] = {
            "ms": median, "ms 25 %": low, "ms 75 %": high, "steps": len(taken), "memory_MB": memory[name],
        }  # fmt: skip
    return found


def _by_turns(benches: Mapping[K, StepBench], turns: Iterable[int], warmup: int) -> dict[K, list[float]]:
    """Milliseconds of each bench's steps, one of each a turn; those of the first ``warmup`` turns are dropped."""
    times: dict[K, list[float]] = {name: [] for name in benches}
    for turn in turns:
        for name, bench in benches.items():
            taken = bench.milliseconds()
            if turn >= warmup:
                times[name].append(taken)
    return times


def compare_forms(config: RunConfig, *, device: str | None = None, steps: int = 10, warmup: int = 2) -> dict[str, Any]:
    """Our step against the textbook form, by turns in one process, so that a busy machine slows both.

    Returns:
        For each form ``ms`` and ``memory_MB``; ``ratio``: the median over turns of textbook / ours, with its extremes.
    """
    benches = {form: StepBench(config, form, device) for form in FORMS}
    times = _by_turns(benches, range(warmup + steps), warmup)
    ratios = sorted(slow / quick for slow, quick in zip(times["textbook"], times["ours"], strict=True))
    cost = {
        form: {"ms": statistics.median(times[form]), "memory_MB": benches[form].memory_bytes() / 1e6} for form in FORMS
    }
    return {**cost, "ratio": statistics.median(ratios), "ratio min": ratios[0], "ratio max": ratios[-1], "turns": steps}
