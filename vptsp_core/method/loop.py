"""The training loop: epochs of steps, and the schedule of the learning rates.

It knows nothing of files, progress bars and metrics. `Loop.rows` yields after every epoch; its caller evaluates, saves
and selects (`vptsp_core.runs.train`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from vptsp_core.method.model import MetricModel, make_optimizers
from vptsp_core.method.sampler import ClassBalancedSampler
from vptsp_core.method.step import TrainStep

Row = dict[str, float]


class Loop:
    """A model with its optimisers and schedules: all that moves in training.

    Args:
        model: on its device, with ``model.vit.autocast`` set.
        sampler: which images make the batches of an epoch.
        labels: (N,) class of every training image.
        batches: gives the batches of an epoch, counted from 0: images (b, 3, H, W), normalised, and labels (B,), on
            the device, in the sampler's order.
        make_step: makes the step from model, optimisers and scaler.
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
        self.losses = torch.empty(0)  # (steps,) of the last epoch, on the device

    def rows(self, finished: int = 0) -> Iterator[Row]:
        """Train from epoch ``finished`` (counted from 0) to the last one; a row after each.

        Yields:
            ``epoch`` (counted from 1), ``loss`` (mean over its steps), ``lr``, ``lr_proxy``, ``seconds``.
        """
        for epoch in range(finished, self.model.config.epochs):
            row = self.train_epoch(epoch)
            for schedule in self.schedules:
                schedule.step()
            yield row

    def train_epoch(self, epoch: int) -> Row:
        """All steps of one epoch, counted from 0.

        It seeds dropout from (seed, epoch), so that a resumed run takes the same steps.
        """
        torch.manual_seed(int(np.random.SeedSequence([self.model.config.seed, epoch, 2]).generate_state(1)[0]))
        self.model.train()
        start, losses = time.perf_counter(), []
        classes = self._classes(epoch)
        upcoming = [*classes[1:], None]
        for (images, labels), here, following in zip(self.batches(epoch), classes, upcoming, strict=True):
            losses.append(self.step(images, labels, here, following))
        self.losses = torch.stack(losses)
        mean = self.losses.mean().item()  # the only wait for the device, but for fp16
        rates = {"lr": self.rate(0), "lr_proxy": self.rate(1)}
        return {"epoch": epoch + 1, "loss": mean, **rates, "seconds": time.perf_counter() - start}

    def rate(self, which: int) -> float:
        """The current rate of optimiser ``which``: 0 trains everything but O, 1 trains O."""
        return float(self.optimizers[which].param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to continue in another process."""
        return {
            "learned": self.model.learned_state(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, on this device, whichever device the state was on."""
        self.model.load_state_dict(state["learned"], strict=False)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
                group["fused"] = own["fused"]
            optimizer.load_state_dict(saved)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])

    def _classes(self, epoch: int) -> list[Tensor]:
        """Classes of each batch of an epoch, (C',) int64 on the CPU; pinned where a GPU fetches them."""
        per_class = self.model.config.samples_per_class
        found = [torch.from_numpy(self.labels[batch[::per_class]]) for batch in self.sampler.epoch(epoch)]
        return [classes.pin_memory() for classes in found] if self.device.type == "cuda" else found
