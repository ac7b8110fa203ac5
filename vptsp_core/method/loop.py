"""The training loop: epochs of steps, and the schedule of the learning rates.

It has no files, no progress bar and no metrics. `Loop.rows` yields after every epoch. Its caller then evaluates, saves,
and selects the best epoch (`vptsp_core.runs.train`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from vptsp_core.errors import WeightsError
from vptsp_core.method.model import MetricModel, make_optimizers
from vptsp_core.method.sampler import ClassBalancedSampler
from vptsp_core.method.step import TrainStep

Row = dict[str, float]


class Loop:
    """A model with its optimisers, schedules and step: everything that changes in training.

    Args:
        model: on its device, with ``model.vit.autocast`` set.
        sampler: chooses the images of every batch.
        labels: (N,), the class of every training image.
        batches: called with an epoch, counted from 0; returns its batches in the order of the sampler. A batch is
            images (b, 3, H, W), normalised, and labels (B,), both on the device (see `MetricModel.loss`).
        make_step: called with model, optimisers and scaler; returns the step.

    Attributes:
        losses: (steps,), the losses of the last epoch, on the device.
    """

    def __init__(
        self,
        model: MetricModel,
        sampler: ClassBalancedSampler,
        labels: np.ndarray,
        batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
        make_step: Callable[..., TrainStep] = TrainStep,
    ) -> None:
        config = model.config
        self.model, self.sampler, self.labels, self.batches = model, sampler, labels, batches
        self.device = next(model.parameters()).device
        self.optimizers = make_optimizers(model)
        self.schedules = [
            CosineAnnealingLR(optimizer, config.cosine_T, eta_min=config.cosine_min) for optimizer in self.optimizers
        ]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=model.vit.autocast is torch.float16)
        self.step = make_step(model, self.optimizers, self.scaler)
        self.losses = torch.empty(0)

    def rows(self, finished: int = 0) -> Iterator[Row]:
        """Train until the last epoch, and yield a row after each. The first ``finished`` epochs are skipped.

        Yields:
            ``epoch`` (counted from 1), ``loss`` (the mean over its steps), ``lr`` and ``lr_proxy`` (the learning rates
            in this epoch), and ``seconds``.
        """
        for epoch in range(finished, self.model.config.epochs):
            row = self.train_epoch(epoch)
            for schedule in self.schedules:
                schedule.step()
            yield row

    def train_epoch(self, epoch: int) -> Row:
        """Take all steps of one epoch, counted from 0, and return its row (see `rows`).

        Dropout's random numbers depend only on the run's seed and the epoch, so a resumed run takes the same steps.
        """
        torch.manual_seed(int(np.random.SeedSequence([self.model.config.seed, epoch, 2]).generate_state(1)[0]))
        self.model.train()
        start, losses = time.perf_counter(), []
        for (images, labels), classes in zip(self.batches(epoch), self._classes(epoch), strict=True):
            losses.append(self.step(images, labels, classes))
        self.losses = torch.stack(losses)
        mean = self.losses.mean().item()  # the host waits for the device only here, and with fp16 in each step
        lr, lr_proxy = (float(optimizer.param_groups[0]["lr"]) for optimizer in self.optimizers)
        seconds = time.perf_counter() - start
        return {"epoch": epoch + 1, "loss": mean, "lr": lr, "lr_proxy": lr_proxy, "seconds": seconds}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that another process needs to continue the training (see `load_state_dict`)."""
        return {
            "learned": self.model.learned_state(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned, on this device or on another one.
        Raises WeightsError: it has other learned tensors than this model.
        """
        given, here = state["learned"].keys(), self.model.learned_state().keys()
        if given != here:
            what = "lacks" if here - given else "has an unknown"
            raise WeightsError(
                f"the checkpoint {what} {min(given ^ here)}; use the version of vptsp_core that wrote it, or delete it"
            )
        self.model.load_state_dict(state["learned"], strict=False)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
                group["fused"] = own["fused"]
            optimizer.load_state_dict(saved)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])

    def _classes(self, epoch: int) -> list[Tensor]:
        """Return the classes of each batch of an epoch, (C',) int64 on the CPU, in pinned memory if there is a GPU."""
        per_class = self.model.config.samples_per_class
        batches = [torch.from_numpy(self.labels[batch[::per_class]]) for batch in self.sampler.epoch(epoch)]
        return [classes.pin_memory() for classes in batches] if self.device.type == "cuda" else batches
