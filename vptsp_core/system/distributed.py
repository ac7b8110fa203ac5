"""Several processes, one for each GPU or share of the CPUs: what torchrun starts, and what they send each other.

All processes hold the same model and draw the same global batches; each embeds its own share of the images. The
embeddings are gathered, so that every process computes the loss and the proxies of the whole batch, and the gradients
are put together again (`Processes`). Without a group all of this is the identity.
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
# A process waits while the first one computes metrics; torchrun ends those that wait for one that is gone.
_PATIENCE = timedelta(hours=6)
_store: dist.Store | None = None


def launched() -> bool:
    """Whether torchrun, or something that speaks as it does, started this process."""
    return dist.is_available() and all(name in os.environ for name in _VARIABLES)


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def local_size() -> int:
    """Processes on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if launched() else 1


def joined() -> bool:
    """Whether there is a group."""
    return dist.is_available() and dist.is_initialized()


def start(device: torch.device) -> None:
    """Join the group that torchrun's environment describes, once: NCCL for a GPU, Gloo for the CPU, else nothing.
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
    """Leave the group, where there is one; all processes do so."""
    global _store
    if joined():
        dist.destroy_process_group()
    _store = None


def world_size() -> int:
    """Processes of the group."""
    return dist.get_world_size() if joined() else 1


def rank() -> int:
    """Number of this process among `world_size`."""
    return dist.get_rank() if joined() else 0


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def own_share(n: int) -> slice:
    """The part of n things in a row that is this process's: all shares but the last ones hold ceil(n / world size)."""
    size = -(-n // world_size())
    return slice(rank() * size, (rank() + 1) * size)


def check_batch(batch: int, samples_per_class: int) -> None:
    """Refuse a batch that does not split into equal shares of whole classes.
    Raises ConfigError: naming the counts of processes and the batches that would do.
    """
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
    """The processes of this group as a model sees them (`vptsp_core.method.model.Group`)."""

    def share(self, rows: Tensor) -> Tensor:
        """`own_share` of the rows of a tensor (n, ...); without a group the tensor itself, whose gradient is not
        copied.
        """
        return rows[own_share(len(rows))] if joined() else rows

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of their ranks: (b, d), the same b everywhere -> (world size * b, d).

        Every process then has the whole gradient already; backward takes out the part of its own rows, and adds nothing
        up.
        """
        return _GatherRows.apply(rows) if joined() else rows

    def sum_gradients(self, partial: Iterable[Tensor], whole: Iterable[Tensor]) -> None:
        """Give every process the batch's gradients, the same to the last bit, in one all-reduce.

        Args:
            partial: parameters whose gradient is that of this process's images alone; they are added up. Those without
                one are left alone: the processes run the same graph, so none of them has one.
            whole: parameters whose gradient every process has in full; the first process's counts.
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
    """What ``make`` returns in the first process, the only one that calls it; the others wait for it.
    Raises VptspError: in all processes, where ``make`` raises one.
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
    """The first process's tensor (any shape), in place in all of them, which hold one of that shape on their device."""
    if joined():
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=0)
    return tensor


def first_to_fail() -> bool:
    """Whether no other process of the group has called this before: the one that says what is wrong."""
    return _store is None or _store.add("failed", 1) == 1


def another_failed() -> bool:
    """Whether `first_to_fail` was called, so that an error of the connection is only its consequence."""
    return _store is not None and _store.check(["failed"])
