"""The check for numbers that are not finite, in all tensors of a checkpoint.

A weight or an optimiser's state can become NaN or infinite without a trace in the losses: in the last step, or for a
class that is not drawn again. The check is made once per epoch because a check in each step would make the GPU wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from vptsp_core.method.model import MetricModel


def first_bad_tensor(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a number that is not finite, or None."""
    for name, tensor in tensors.items():  # unlike isfinite(), aminmax() needs no memory
        if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            return name
    return None


def all_learned(model: MetricModel, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name: weights, buffers, and the optimisers' state."""
    tensors = model.learned_state()
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            tensors |= {f"{names[parameter]} ({k})": v for k, v in state.items() if isinstance(v, Tensor)}
    return tensors
