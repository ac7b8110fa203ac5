"""Train with several processes, one per GPU or share of the CPUs, which torchrun starts.

All processes have the same model and draw the same global batches, and each embeds its share of the images. The
embeddings are gathered, so every process computes the loss and the proxies of the whole batch. Then the gradients are
summed (`Processes`). Without a group, these functions change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vptsp_core.errors import ConfigError, VptspError

T = TypeVar("T")
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets them
# A process waits while the first one computes metrics. If that one has died, torchrun ends the others.
_PATIENCE = timedelta(hours=6)
_store: dist.Store | None = None


def launched() -> bool:
    """Return whether torchrun, or a launcher that sets the same variables, started this process."""
    return dist.is_available() and all(name in os.environ for name in _VARIABLES)


def local_rank() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def local_size() -> int:
    """Return the number of processes on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if launched() else 1


def joined() -> bool:
    """Return whether this process has joined a group."""
    return dist.is_available() and dist.is_initialized()


def start(device: torch.device) -> None:
    """Join the group that torchrun's environment describes, if there is one, with NCCL for a GPU and Gloo for the CPU.
    Raises VptspError: the processes cannot find each other.
    """
    global _store
    if not launched() or joined():
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        _store, rank, world_size = next(dist.rendezvous("env://"))
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=_store, rank=rank, world_size=world_size,
            timeout=_PATIENCE, device_id=device if on_gpu else None,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VptspError(f"the processes cannot find each other ({reason}); check torchrun's arguments") from error


def stop() -> None:
    """Leave the group. All its processes must call this."""
    global _store
    if joined():
        dist.destroy_process_group()
    _store = None


def world_size() -> int:
    """Return the number of processes in the group."""
    return dist.get_world_size() if joined() else 1


def rank() -> int:
    """Return the number of this process in the group."""
    return dist.get_rank() if joined() else 0


def is_main() -> bool:
    """Return whether this is the process that writes and prints."""
    return rank() == 0


def own_share(n: int) -> slice:
    """Return this process's part of n items. Each part has ceil(n / world size) items, and only the last have fewer."""
    size = -(-n // world_size())
    return slice(rank() * size, (rank() + 1) * size)


def check_batch(batch: int, samples_per_class: int) -> None:
    """Raise ConfigError if a batch does not split into equal shares of whole classes."""
    world, classes = world_size(), batch // samples_per_class
    if classes % world:
        step = world * samples_per_class
        near = [size for size in (batch // step * step, (batch // step + 1) * step) if size]
        fitting = ", ".join(str(n) for n in range(1, classes + 1) if classes % n == 0)
        raise ConfigError(
            f"batch = {batch} holds {classes} classes, which {world} processes cannot share evenly; "
            f"start {fitting} of them, or choose batch = {' or '.join(map(str, near))}"
        )


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.rows = own.shape[0]
        out = own.new_empty(world_size() * own.shape[0], *own.shape[1:])
        dist.all_gather(list(out.chunk(world_size())), own.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0][rank() * ctx.rows : (rank() + 1) * ctx.rows]


class Processes:
    """The processes of this group, for a model (`vptsp_core.method.model.Group`)."""

    def share(self, rows: Tensor) -> Tensor:
        """Return `own_share` of the rows of a tensor (n, ...); without a group, return the tensor itself."""
        return rows[own_share(len(rows))] if joined() else rows

    def gather(self, rows: Tensor) -> Tensor:
        """Gather the rows of all processes by rank: (b, d), with the same b everywhere -> (world size * b, d).

        Every process has the whole gradient of the gathered rows, so backward only selects its own rows.
        """
        return _GatherRows.apply(rows) if joined() else rows

    def sum_gradients(self, partial: Iterable[Tensor], whole: Iterable[Tensor]) -> None:
        """Give every process the same gradients of the whole batch, to the last bit, with one all-reduce.

        Args:
            partial: parameters whose gradient comes from this process's images alone. These gradients are summed. A
                parameter without a gradient has none in any process, because all run the same graph.
            whole: parameters whose gradient every process has in full. The first process's gradient is taken.
        """
        if not joined():
            return
        own = [p.grad for p in partial if p.grad is not None]
        common = [p.grad for p in whole if p.grad is not None]
        sent = own + (common if is_main() else [torch.zeros_like(g) for g in common])
        flat = torch.cat([g.reshape(-1) for g in sent])
        dist.all_reduce(flat)
        for gradient, total in zip(own + common, flat.split([g.numel() for g in sent]), strict=True):
            gradient.copy_(total.view_as(gradient))


def from_main(make: Callable[[], T]) -> T:
    """Call ``make`` in the first process only, and return its result in all processes.
    Raises VptspError in all processes if ``make`` raises one.
    """
    if not joined():
        return make()
    result: list[Any] = [None, None]
    if is_main():
        try:
            result[0] = make()
        except VptspError as error:
            result[1] = error
    dist.broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise result[1]
    return result[0]


def from_first(tensor: Tensor) -> Tensor:
    """Copy the first process's tensor (any shape) into that of all others, which has the same shape. Return it."""
    if joined():
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=0)
    return tensor


def first_to_fail() -> bool:
    """Return whether this process is the first to call this, so that it alone reports the error."""
    return _store is None or _store.add("failed", 1) == 1


def another_failed() -> bool:
    """Return whether another process has failed, so that an error of the connection is only a consequence."""
    return _store is not None and _store.check(["failed"])
