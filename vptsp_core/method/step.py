"""One optimiser step, the same for every method.

Nothing in a step waits for the device: no ``.item()``, no boolean indexing, no copy out of pageable memory. Shapes are
the same in every step (a constant batch, constant prompt counts), so that it can be compiled and replayed as a CUDA
graph (`vptsp_core.runs.compile`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vptsp_core.method.model import MetricModel
from vptsp_core.method.vit import PromptedViT


class TrainStep:
    """One step of training: ``step(images, labels, classes, upcoming)``.

    Args:
        model: on its device, in train mode when called; its frozen weights are cast to the trunk's precision
            (`cast_frozen_weights`).
        optimizers: from `make_optimizers`; the first holds the class prompts' rows.
        scaler: scales fp16's gradients; None: no scaling.
    """

    def __init__(
        self,
        model: MetricModel,
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.model, self.optimizers = model, optimizers
        self.device = next(model.parameters()).device
        self.scaler = scaler or torch.amp.GradScaler(self.device.type, enabled=False)
        cast_frozen_weights(model.vit)

    def __call__(
        self, images: Tensor, labels: Tensor, classes: Tensor | None = None, upcoming: Tensor | None = None
    ) -> Tensor:
        """Forward, backward, both optimisers; returns the loss before them, on the device.

        Args:
            images, labels: see `MetricModel.loss`.
            classes, upcoming: (C',) int64 on the CPU, the classes of this batch and of the next (see
                `ClassPrompts.swap_in`). Without ``classes`` the labels give them; the table must be on the device.
        """
        prompts, (optimizer, _) = self.model.class_prompts, self.optimizers
        if classes is None:
            classes = labels[:: self.model.config.samples_per_class]
        if prompts is not None:
            prompts.swap_in(classes, optimizer, upcoming)
        for each in self.optimizers:
            each.zero_grad(set_to_none=True)
        loss = self.forward_backward(images, labels)
        self.model.sum_gradients()
        for each in self.optimizers:
            self.scaler.step(each)  # optimizer.step(); with fp16 only if the gradients are finite
        self.scaler.update()
        if prompts is not None:
            prompts.swap_out(classes, optimizer)
        return loss

    def forward_backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of the batch, a scalar; afterwards every parameter that learns has its gradient."""
        loss = self.model.loss(images, labels)
        self.scaler.scale(loss).backward()
        return loss.detach()


def cast_frozen_weights(vit: PromptedViT) -> None:
    """Keep the weights that do not learn in the precision that autocast computes in; it changes no number.

    Autocast rounds a weight each time it is used, which costs a pass over all weights for every tower and step, and
    twice the memory. Norms, embeddings, and whatever learns or comes after the trunk stay in float32. Use the model
    only to train and measure afterwards; loading the run gives the original weights.
    """
    if vit.autocast is None:
        return
    for module in vit.backbone.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(vit.autocast)
