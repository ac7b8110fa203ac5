"""The training steps whose cost is measured: ours in each form, and the released one, on random images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vptsp_core.data.catalog import CATALOG
from vptsp_core.errors import ConfigError, check_choice
from vptsp_core.method import textbook
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel, make_optimizers
from vptsp_core.method.step import TrainStep
from vptsp_core.paper.released import ReleasedBench
from vptsp_core.runs.compile import CompiledStep
from vptsp_core.runs.run import build_model
from vptsp_core.system.devices import autocast_dtype, pick_device

CLASSES = {name: known.counts["train"][0] for name, known in CATALOG.items()}  # of the training sets


class TextbookStep(TrainStep):
    """The same step with the textbook form of the loss: concatenate, run the block and drop."""

    def forward_backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """As `TrainStep.forward_backward`: images (B, 3, H, W), labels (B,)."""
        loss = self.loss(images, labels)
        self.scaler.scale(loss).backward()
        return loss.detach()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss in the trunk's precision, a scalar."""
        dtype = self.model.vit.autocast
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            return textbook.loss(self.model, images, labels)


FORMS: dict[str, type[TrainStep]] = {"eager": TrainStep, "compiled": CompiledStep, "textbook": TextbookStep}


class StepBench:
    """One training step of ours on random images, of a model with random weights (neither changes the time).

    Args:
        form: of `FORMS`; ``"eager"`` is our step as it is written.
        classes, class_table: as for `random_model`.
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
        """Forward, backward and both optimisers."""
        self.train_step(self.images, self.labels, self.classes, self.upcoming)

    def kept(self) -> tuple[Callable[[], Tensor], list[Tensor], Sequence[torch.optim.Optimizer]] | None:
        """Its loss, its weights and buffers, and its optimisers, to count memory by (`step_cost.kept_bytes`); None for
        the compiled form, whose graph decides what it keeps.
        """
        if self.form == "compiled":
            return None
        loss = self.train_step.loss if isinstance(self.train_step, TextbookStep) else self.model.loss
        return partial(loss, self.images, self.labels), list(self.model.state_dict().values()), self.optimizers

    def facts(self) -> dict[str, Any]:
        """``precision`` of the trunk; ``compile_s``, seconds of compiling, None where that failed."""
        facts = {"precision": str(self.model.vit.autocast or torch.float32).removeprefix("torch.")}
        step = self.train_step
        return {**facts, "compile_s": step.compile_seconds} if isinstance(step, CompiledStep) else facts


def random_model(
    config: RunConfig, device: torch.device, classes: int | None = None, class_table: str = "auto"
) -> MetricModel:
    """The run's model with random weights, in train mode. Raises ConfigError for a method that trains nothing.

    Args:
        classes: default `training_classes`.
        class_table: ``"device"``, ``"host"`` or ``"auto"``: the place of the class prompts.
    """
    if config.method == "frozen":
        raise ConfigError("method = 'frozen' trains nothing, so there is no step to measure; choose another method")
    classes = classes or training_classes(config, device)
    return build_model(config.replace(weights="random"), classes, device, class_table).train()


def random_batch(config: RunConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, 3, S, S) and labels (B,), the same for all that is measured."""
    images = torch.randn(config.batch, 3, *[config.image_size] * 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(config.batch // config.samples_per_class).repeat_interleave(config.samples_per_class)
    return images.to(device), labels.to(device)


def training_classes(config: RunConfig, device: torch.device) -> int:
    """Classes of the run's training set; on a CPU at most 256, which cost a step as much as more do."""
    known = CLASSES.get(config.dataset, 100)
    return max(min(known, 256) if device.type == "cpu" else known, config.batch // config.samples_per_class)


Bench = StepBench | ReleasedBench


def make_forms(
    config: RunConfig, forms: Iterable[str] = tuple(FORMS), reference: str | Path | None = None,
    device: str | None = None,
) -> dict[str, Callable[[], Bench]]:  # fmt: skip
    """What makes the bench of each form, all on the same images from the same weights.

    Args:
        forms: of our own code.
        reference: the user's clone of the released implementation; adds ``"released"``, and where that is released with
            gradient checkpointing also ``"released, no checkpointing"``.
    """
    made: dict[str, Callable[[], Bench]] = {form: partial(StepBench, config, form, device) for form in forms}
    if reference is not None:
        made["released"] = partial(released_bench, config, reference, device)
        if config.method == "vptsp" and config.class_optimizer == "rowwise":
            made["released, no checkpointing"] = partial(released_bench, config, reference, device, False)
    return made


def released_bench(
    config: RunConfig, reference: str | Path, device: str | None = None, checkpointing: bool | None = None
) -> ReleasedBench:
    """The clone's step, from the weights and on the images of our `StepBench`."""
    target = pick_device(device)
    return ReleasedBench(random_model(config, target), *random_batch(config, target), reference, checkpointing)

