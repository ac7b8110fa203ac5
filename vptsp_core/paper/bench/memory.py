"""The memory of a training step: on a GPU what its allocator saw, on a CPU what the step has to keep."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import torch
from torch import Tensor


class Bench(Protocol):
    """A training step that can be measured."""

    device: torch.device

    def step(self) -> object:
        """Forward, backward and both optimisers."""

    def kept_bytes(self) -> int | None:
        """Bytes of all weights, gradients and optimiser state, and of every tensor kept for the backward pass, each
        storage once (exact, but for passing temporaries); None where they cannot be counted."""


B = TypeVar("B", bound=Bench)


def kept_bytes(
    loss: Callable[[], Tensor], state: Iterable[Tensor], optimizers: Iterable[torch.optim.Optimizer]
) -> int:  # fmt: skip
    """What `Bench.kept_bytes` promises, by a pass forward and backward after which the gradients are gone.

    Args:
        state: weights and buffers.
        optimizers: of what learns; at least one step old.
    """
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    for tensor in state:
        count(tensor)
    for optimizer in optimizers:
        for moments in optimizer.state.values():
            for tensor in filter(torch.is_tensor, moments.values()):
                count(tensor)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        value = loss()
    value.backward()
    learned = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    gradients = sum(p.grad.nbytes for p in learned if p.grad is not None)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    return sum(storages.values()) + gradients


def with_memory(make: Callable[[], B], device: torch.device) -> tuple[B, float]:
    """A bench that was made and has taken its first steps, and the peak of its memory in 10^6 bytes.

    On a GPU the allocator's, beyond what others hold, in these steps (what compiling took is part of it); on a CPU
    `Bench.kept_bytes`, NaN where it cannot tell.
    """
    if device.type != "cuda":
        bench = make()
        bench.step()  # the optimiser's state is made in the first one
        kept = bench.kept_bytes()
        return bench, math.nan if kept is None else kept / 1e6
    others = torch.cuda.memory_allocated(device)
    bench = make()
    gc.collect()  # what its making alone needed
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):  # a CUDA graph is recorded in the second or third
        bench.step()
    return bench, (torch.cuda.max_memory_allocated(device) - others) / 1e6
