"""The training steps to measure: ours in each form, and the released implementation's (`released.ReleasedBench`).

Images and weights are random, which changes no time. `step_cost` measures the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vptsp_core.errors import ConfigError
from vptsp_core.method import textbook
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel, make_optimizers
from vptsp_core.method.step import TrainStep
from vptsp_core.paper.methods import TRAIN_CLASSES
from vptsp_core.paper.released import ReleasedBench
from vptsp_core.runs.compile import CompiledStep
from vptsp_core.runs.run import build_model
from vptsp_core.system.devices import autocast_dtype, pick_device


class TextbookStep(TrainStep):
    """The training step with the textbook form of the loss: concatenate prompts, run the block, drop prompts."""

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
        classes: passed to `random_model`.
    """

    def __init__(
        self, config: RunConfig, form: str = "eager", device: str | None = None, *, classes: int | None = None
    ) -> None:
        self.form, self.device = form, pick_device(device)
        self.model = random_model(config, self.device, classes)
        self.images, self.labels = random_batch(config, self.device)
        self.classes = torch.arange(config.batch // config.samples_per_class)  # on the CPU
        dtype = autocast_dtype(config.precision, self.device, self.model.vit.backbone.embed_dim)
        self.model.vit.autocast = dtype
        self.optimizers = make_optimizers(self.model)
        scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        self.train_step = FORMS[form](self.model, self.optimizers, scaler)

    def step(self) -> None:
        """Run forward, backward and both optimisers."""
        self.train_step(self.images, self.labels, self.classes)

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


def random_model(config: RunConfig, device: torch.device, classes: int | None = None) -> MetricModel:
    """Return the run's model with random weights, in train mode. Raises ConfigError for a method that trains nothing.

    Args:
        classes: the number of training classes (default: `training_classes`).
    """
    if config.method == "frozen":
        raise ConfigError("method = 'frozen' trains nothing, so there is no step to measure; choose another method")
    classes = classes or training_classes(config, device)
    return build_model(config.replace(weights="random"), classes, device).train()


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
