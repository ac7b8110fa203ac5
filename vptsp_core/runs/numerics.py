"""Numbers that are not finite: looked for once an epoch, named with their step, and never saved.

While steps are taken nothing waits for the device, so a loss that is not finite is found at the end of its epoch: the
step from the recorded losses, its images from the sampler, which draws the same batches again. A weight or an
optimiser's state can break without a trace in the losses (in the last step, or for a class that is not drawn again),
so all tensors that a checkpoint would hold are looked at, too: one pass over them, without a copy, before the model is
evaluated and saved.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vptsp_core.method.model import MetricModel


def first_bad_loss(losses: Tensor) -> int | None:
    """Place of the first of the losses (T,) that is not finite; the only wait for the device. None where all are."""
    bad = ~losses.isfinite()
    return int(bad.float().argmax()) if bad.any() else None


def first_bad_tensor(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds a number that is not finite; one wait a device. None where all are.

    The extremes of a tensor are not finite if one of its numbers is not; unlike ``isfinite``, they need no memory.
    """
    checked = {name: t for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    finite = {name: torch.stack(t.detach().aminmax()).isfinite().all() for name, t in checked.items()}
    good: dict[str, bool] = {}
    for device in {flag.device for flag in finite.values()}:
        there = {name: flag for name, flag in finite.items() if flag.device == device}
        good |= zip(there, torch.stack(list(there.values())).tolist(), strict=True)
    return next((name for name in checked if not good[name]), None)


def last_change(name: str, tensor: Tensor, labels: Sequence[np.ndarray]) -> int:
    """The step of an epoch that left a tensor as it is, counted from 0.

    That is the last one, but for a class's prompts: the loss has seen them until their class was last drawn.

    Args:
        labels: (B,) of each of the epoch's batches.
    """
    if name.startswith("class_prompts.") and not name.startswith("class_prompts.rows"):
        extremes = torch.stack(tensor.detach().flatten(1).aminmax(dim=1))
        row = int((~extremes.isfinite()).any(0).float().argmax())
        return max((step for step, batch in enumerate(labels) if row in batch), default=len(labels) - 1)
    return len(labels) - 1


def all_learned(model: MetricModel, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What a checkpoint holds of tensors that learn: weights, buffers, and the optimisers' state, by name."""
    found = model.learned_state()
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            found |= {f"{names[parameter]} ({k})": v for k, v in state.items() if isinstance(v, Tensor)}
    return found


def listed(names: Sequence[str]) -> str:
    """Names with what they begin with told once, as a shell would write it.

    >>> listed(["birds/1/a.png", "birds/1/b.png", "birds/2/a.png", "birds/1/a.png"])
    'birds/{1/a.png, 1/b.png, 2/a.png}'
    >>> listed(["glyphs train image 3", "glyphs train image 30"])
    'glyphs train image {3, 30}'
    >>> listed(["a.png"])
    'a.png'
    """
    names = list(dict.fromkeys(names))
    common = os.path.commonprefix(names)
    start = max(common.rfind(" "), common.rfind("/")) + 1
    return names[0] if len(names) == 1 else f"{common[:start]}{{{', '.join(name[start:] for name in names)}}}"
