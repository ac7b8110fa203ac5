"""The check for numbers that are not finite, once per epoch: in the losses, and in all tensors of a checkpoint.

A weight or an optimiser's state can break without a trace in the losses: in the last step, or for a class that is not
drawn again. The check is made once per epoch because a check in each step would make the GPU wait.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from vptsp_core.method.model import MetricModel


def first_bad_loss(losses: Tensor) -> int | None:
    """Return the place of the first of the losses (steps,) that is not finite, or None."""
    bad = (~losses.isfinite()).nonzero()
    return int(bad[0]) if len(bad) else None


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


def listed(names: Sequence[str]) -> str:
    """Join names in one line, with their common beginning written once, as in a shell.

    >>> listed(["birds/1/a.png", "birds/1/b.png", "birds/2/a.png", "birds/1/a.png"])
    'birds/{1/a.png, 1/b.png, 2/a.png}'
    >>> listed(["glyphs train image 3", "glyphs train image 30"])
    'glyphs train image {3, 30}'
    >>> listed(["a.png"])
    'a.png'
    """
    names = list(dict.fromkeys(names))
    common = os.path.commonprefix(names)
    start = max(common.rfind(mark) for mark in (" ", "/", os.sep)) + 1
    return names[0] if len(names) == 1 else f"{common[:start]}{{{', '.join(name[start:] for name in names)}}}"
