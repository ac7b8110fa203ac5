"""Measured cost of a training step: what is timed (`StepBench`), and the costs of one run or of several by turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vptsp_core.errors import ConfigError
from vptsp_core.method import textbook
from vptsp_core.method.config import RunConfig, check_choice
from vptsp_core.method.model import MetricModel, make_optimizers
from vptsp_core.method.step import TrainStep
from vptsp_core.paper.bench.memory import Bench, kept_bytes, with_memory
from vptsp_core.paper.bench.turns import STEPS_A_TURN, K, Turn, by_turns, spread, step_times
from vptsp_core.runs.compile import CompiledStep, compiles
from vptsp_core.runs.run import build_model
from vptsp_core.system.bars import bar
from vptsp_core.system.devices import autocast_dtype, pick_device, to_device

FORMS = ("eager", "compiled", "textbook")


class StepBench:
    """One training step on random images, of a model with random weights (neither changes the time).

    Args:
        form: ``"eager"``, our step as it is written; ``"compiled"``, the same compiled; ``"textbook"``, concatenate,
            run the block and drop (`vptsp_core.method.textbook`).

    Raises:
        ConfigError: a method that trains nothing, or no such form.
    """

    def __init__(
        self, config: RunConfig, form: str = "eager", device: str | None = None,
        *, classes: int | None = None, class_table: str = "auto",
    ) -> None:  # fmt: skip
        check_trains(config)
        check_choice("form", form, FORMS)
        self.device = pick_device(device)
        classes = classes or max(100, config.batch // config.samples_per_class)
        self.model = build_model(config.replace(weights="random"), classes, self.device, class_table).train()
        self.model.vit.autocast = autocast_dtype(config.precision, self.device, self.model.vit.backbone.embed_dim)
        self.optimizers = make_optimizers(self.model)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.model.vit.autocast is torch.float16)
        self.form = form
        self.train_step: TrainStep | TextbookStep
        if form == "textbook":
            self.train_step = TextbookStep(self.model, self.optimizers, scaler)
        else:
            kind = CompiledStep if form == "compiled" else TrainStep
            self.train_step = kind(self.model, self.optimizers, scaler)
        self.images, chosen = random_batch(config)
        self.images = self.images.to(self.device)
        self.choose(chosen)

    @property
    def compile_seconds(self) -> float | None:
        """What the first step took to compile; None where steps are not compiled."""
        return self.train_step.compile_seconds if isinstance(self.train_step, CompiledStep) else None

    def choose(self, classes: Tensor, upcoming: Tensor | None = None) -> None:
        """The classes of the next `step`, and of the one after: (C',) int64 on the CPU."""
        self.classes, self.upcoming = classes, upcoming
        labels = classes.repeat_interleave(self.model.config.samples_per_class)
        self.labels = to_device(labels, self.device)

    def step(self) -> None:
        """Forward, backward and both optimisers."""
        self.train_step(self.images, self.labels, self.classes, self.upcoming)

    def kept_bytes(self) -> int | None:
        """See `Bench`; None for the compiled form, whose graph keeps what it likes."""
        if isinstance(self.train_step, TextbookStep):
            loss = self.train_step.loss
        elif self.form == "eager":
            loss = self.model.loss
        else:
            return None
        return kept_bytes(
            lambda: loss(self.images, self.labels), self.model.state_dict().values(), self.optimizers
        )  # fmt: skip


class TextbookStep:
    """What `TrainStep` does, with the loss of `vptsp_core.method.textbook`."""

    compile_seconds = None

    def __init__(
        self, model: MetricModel, optimizers: tuple[torch.optim.Optimizer, ...], scaler: torch.amp.GradScaler
    ) -> None:
        self.model, self.optimizers, self.scaler = model, optimizers, scaler

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The textbook loss in the trunk's precision, a scalar: images (B, 3, H, W), labels (B,)."""
        dtype = self.model.vit.autocast
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            return textbook.loss(self.model, images, labels)

    def __call__(
        self, images: Tensor, labels: Tensor, classes: Tensor, upcoming: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """One step on images (B, 3, H, W); the loss before it, a scalar. The rest as for `TrainStep`."""
        prompts = self.model.class_prompts
        if prompts is not None:
            prompts.swap_in(classes, self.optimizers[0], upcoming)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = self.loss(images, labels)
        self.scaler.scale(loss).backward()
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        if prompts is not None:
            prompts.swap_out(classes, self.optimizers[0])
        return loss.detach()


def random_batch(config: RunConfig) -> tuple[Tensor, Tensor]:
    """The same for all that is measured: images (B, 3, S, S) and their classes (C',), on the CPU."""
    generator = torch.Generator().manual_seed(0)
    side = (config.batch, 3, config.image_size, config.image_size)
    return torch.randn(side, generator=generator), torch.arange(config.batch // config.samples_per_class)


def check_trains(config: RunConfig) -> None:
    """Refuse a run without training steps.

    Raises:
        ConfigError: naming the method.
    """
    if config.method == "frozen":
        raise ConfigError("method = 'frozen' trains nothing, so there is no step to measure; choose another method")


def measure_step(config: RunConfig, *, device: str | None = None, steps: int = 5, warmup: int = 2) -> dict[str, float]:
    """Cost of one training step, as it is written.

    Args:
        steps: timed steps, after ``warmup`` untimed ones.

    Returns:
        ``ms`` (median) with its `spread`, ``images/s`` and ``memory_MB`` (`with_memory`).
    """
    bench, memory = with_memory(lambda: StepBench(config, device=device), pick_device(device))
    for _ in range(warmup):
        bench.step()
    times = spread(step_times(bench.step, bench.device, steps), "ms")
    return {**times, "images/s": 1000 * config.batch / times["ms"], "memory_MB": memory}


def measure_steps(
    benches: Mapping[K, Callable[[], Bench]], *, device: str | None = None, steps: int = 100, warmup: int = 2,
    progress: bool = True,
) -> dict[K, dict[str, float]]:  # fmt: skip
    """Cost of several kinds of training step, by turns in one process.

    Args:
        benches: what makes each of them.
        steps: timed steps of each (on a GPU rounded up to whole turns of several), after ``warmup`` untimed turns.

    Returns:
        For each ``ms`` (median) with its `spread`, ``steps`` and ``memory_MB`` (`with_memory`). A compiled one that
        could not be compiled, of which `TrainStep` has warned, is left out.

    Raises:
        ConfigError: a method that trains nothing, or no step to measure.
    """
    target = pick_device(device)
    made = {name: with_memory(make, target) for name, make in benches.items()}
    made = {name: (bench, memory) for name, (bench, memory) in made.items() if not fell_back(bench)}
    times = timed_turns({name: bench.step for name, (bench, _) in made.items()}, target, steps, warmup, progress)
    found: dict[K, dict[str, float]] = {}
    for name, turns in times.items():
        taken = [one for turn in turns for one in turn]
        found[name] = {**spread(taken, "ms"), "steps": len(taken), "memory_MB": made[name][1]}
    return found


def fell_back(bench: Bench) -> bool:
    """Whether it was to be compiled and could not be, of which `TrainStep` has warned."""
    return isinstance(bench, StepBench) and bench.compile_seconds is None and bench.form == "compiled"


def as_trains(config: RunConfig, images: int, device: torch.device) -> str:
    """``"on"`` or ``"off"``: whether a whole run of the config, on so many training images, compiles its steps."""
    steps = config.steps_per_epoch or images // config.batch
    return "on" if compiles("auto", device, config.epochs * steps) else "off"


def timed_turns(
    steps: Mapping[K, Callable[[], object]], device: torch.device, count: int, warmup: int, progress: bool
) -> dict[K, list[Turn]]:
    """`by_turns` of at least ``count`` timed steps of each.

    Raises:
        ConfigError: none to measure.
    """
    if count < 1:
        raise ConfigError(f"steps = {count} must be at least 1")
    a_turn = min(count, STEPS_A_TURN.get(device.type, 1))
    turns = bar(range(warmup + -(-count // a_turn)), "measuring", show=progress, unit="turns")
    return by_turns(steps, device, turns, warmup, a_turn)
