"""Does a training step fit into the GPU's memory? Tried before the first one, so that nothing need be guessed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from vptsp_core.class_table import MOMENTS
from vptsp_core.errors import VptspError
from vptsp_core.tuning import MetricModel


def probe_step(model: MetricModel, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Forward and backward pass of a batch of zeros, beside room for the optimiser state that is still to come.

    Nothing of it stays: P, the random numbers and the model's mode are as before, and there are no gradients.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    config, device = model.config, next(model.parameters()).device
    learned = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    have_state = {p for optimizer in optimizers for p in optimizer.state}
    proxies, training = model.proxies, model.training
    state = proxies.state.clone() if proxies is not None and proxies.accumulator is not None else None
    if model.class_prompts is not None and model.class_prompts.on_host:
        model.class_prompts.host_rows()  # its buffers are part of a step
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            room = [torch.empty_like(p) for p in learned if p not in have_state for _ in MOMENTS[config.optimizer]]
            labels = torch.arange(config.batch // config.samples_per_class, device=device)
            images = torch.zeros(config.batch, 3, config.image_size, config.image_size, device=device)
            model.train().loss(images, labels.repeat_interleave(config.samples_per_class)).backward()
            del room
    finally:
        model.train(training).zero_grad(set_to_none=True)
        if state is not None and proxies is not None:
            proxies.state.copy_(state)


def fit_step(model: MetricModel, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Turn gradient checkpointing on if a step does not fit without it, and say so.

    Raises:
        VptspError: it does not fit with it either.
    """
    if _fits(model, optimizers):
        return
    if not model.vit.checkpointing:
        model.vit.checkpointing = True
        if _fits(model, optimizers):
            message = "a training step does not fit into the GPU's memory: gradient checkpointing is on (slower)"
            warnings.warn(message, stacklevel=2)
            return
    prompts = model.class_prompts
    movable = prompts is not None and prompts.rowwise and not prompts.on_host
    raise VptspError(
        f"a training step of batch = {model.config.batch} does not fit into the GPU's memory, even with gradient "
        f"checkpointing; lower batch{', or keep the class prompts with --class-table host' if movable else ''}"
    )


def _fits(model: MetricModel, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    try:
        probe_step(model, optimizers)
    except torch.OutOfMemoryError:
        pass  # the error holds the frames, and they the tensors: both must go before the cache can be emptied
    else:
        return True
    torch.cuda.empty_cache()
    return False
