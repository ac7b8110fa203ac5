"""One training step, the same for every method.

The host does not wait for the device in a step: no ``.item()``, no boolean indexing, no copy from pageable memory. Only
the gradient scaler of fp16 waits. All shapes are the same in every step, so that a step can be compiled and replayed as
a CUDA graph (`vptsp_core.runs.compile`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vptsp_core.method.model import MetricModel
from vptsp_core.method.vit import PromptedViT


class TrainStep:
    """A training step: ``loss = step(images, labels)``.

    Args:
        model: on its device; in train mode when a step is taken. Its frozen weights are cast (`cast_frozen_weights`).
        optimizers: from `make_optimizers`. The first one trains the class prompts.
        scaler: scales the loss for fp16; None for no scaling.
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

    def __call__(self, images: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """Compute the loss and its gradients, and let both optimisers take a step.

        Args:
            images, labels: (b, 3, H, W) and (B,), as in `MetricModel.loss`.
            classes: (C',) int64 on the CPU, the classes of this batch; None takes them from the labels. Only class
                prompts in host memory need it.

        Returns:
            The loss before the step, a scalar on the device.
        """
        prompts, (optimizer, _) = self.model.class_prompts, self.optimizers
        if classes is None:
            classes = labels[:: self.model.config.samples_per_class]
        if prompts is not None:
            prompts.swap_in(classes, optimizer)
        for each in self.optimizers:
            each.zero_grad(set_to_none=True)
        loss = self.forward_backward(images, labels)
        self.model.sum_gradients()
        for each in self.optimizers:
            self.scaler.step(each)  # each.step(); with fp16 only if its gradients are finite
        self.scaler.update()
        if prompts is not None:
            prompts.swap_out(classes, optimizer)
        return loss

    def forward_backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the gradient of every parameter that learns, and return the loss, a scalar.

        ``images`` (b, 3, H, W) and ``labels`` (B,) are those of `MetricModel.loss`.
        """
        loss = self.model.loss(images, labels)
        self.scaler.scale(loss).backward()
        return loss.detach()


def cast_frozen_weights(vit: PromptedViT) -> None:
    """Cast the frozen weights of Linear and Conv2d layers to the dtype of ``vit.autocast``.

    No number of training or evaluation changes: autocast would round these weights in every tower and every step, and
    keep both copies in memory. Norms, position embeddings, and every parameter that learns stay in float32. Afterwards,
    use the model only for training and evaluation: the original weights are gone. `vptsp_core.load` loads a run with
    them.
    """
    if vit.autocast is None:
        return
    for module in vit.backbone.modules():
        # Not subclasses: timm's StdConv2d standardises its float32 weight first.
        if type(module) in (nn.Linear, nn.Conv2d):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(vit.autocast)
