"""Keep tables that are too large for a GPU in host memory, and copy only a batch's rows, while the GPU computes.

The main stream computes, and a side stream copies in the order of submission. For batch t:

    main   take(t) | forward, backward, optimiser | give(t) | take(t+1) | forward, backward, ...
    side           | fetch(t+1)                             | write back(t) ;  fetch(t+2) ...

Possible conflicts, and why they do not occur:
- a class of both t and t+1 is fetched before t's step: `take` reads its rows from the outgoing buffer;
- fetch(t+1) overwrites rows that take(t) reads: a copy starts only after all work submitted before it;
- give(t) overwrites rows that write back(t-1) reads: give waits for that copy first;
- fetch(t+2) misses rows of t: it is submitted after write back(t), to the same stream.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vptsp_core.errors import VptspError
from vptsp_core.system.portable import available_memory

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for all devices


def check_room(size: int) -> None:
    """Raise VptspError if this machine's memory cannot hold a table of ``size`` bytes."""
    if size > (available := available_memory()):
        raise VptspError(
            f"no host memory for a class-prompt table of {size / 1e9:.1f} GB ({available / 1e9:.1f} GB are available); "
            "lower class_prompts or class_layers"
        )


def own_pages(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return zeros of ``shape`` (rows, ...) in memory pages of their own, so that they can be pinned.

    Memory is used only when a page is first touched. Forked processes share the pages: a copy on write would move
    rows that a GPU is reading.
    Raises VptspError: the memory is too small.
    """
    size = math.prod(shape) * dtype.itemsize
    check_room(size)
    pages = mmap.mmap(-1, max(size, 1))
    return torch.frombuffer(pages, dtype=dtype, count=math.prod(shape)).view(shape)


def pin(table: Tensor, device: torch.device) -> int:
    """Pin the memory of a table (rows, ...) in place, and return its address for `unpin`.

    ``Tensor.pin_memory`` would copy it into an allocation rounded up to a power of two.
    Raises VptspError: the system's limit of locked memory is too low.
    """
    try:
        with torch.cuda.device(device):
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(table.data_ptr(), table.nbytes, _PORTABLE))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise VptspError(
            f"cannot pin {table.nbytes / 1e9:.1f} GB of host memory for the class prompts ({reason}); "
            "raise the limit of locked memory (ulimit -l), or keep them on the GPU with --class-table device"
        ) from error
    return table.data_ptr()


def unpin(address: int) -> None:
    """Undo `pin`."""
    torch.cuda.cudart().cudaHostUnregister(address)


class DirectCopier:
    """Copy at once, for a device that is the host. A subclass may copy in the background, in order."""

    def submit(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Any:
        """Copy each (target, source) pair, whose shapes are equal. Return a ticket for `wait`."""
        for target, source in pairs:
            target.copy_(source)

    def wait(self, ticket: Any) -> None:
        """Let later work wait for the copies of this ticket. Here they are already done."""

    def finish(self) -> None:
        """Return when every copy is done."""


class StreamCopier(DirectCopier):
    """Copy on a separate CUDA stream. Tickets are events, and the host waits only in `finish`."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def submit(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> torch.cuda.Event:
        """Copy each (target, source) pair after all work that the current stream has so far."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        return self.stream.record_event()

    def wait(self, ticket: torch.cuda.Event) -> None:
        """Let the current stream wait for the event. The host does not wait."""
        torch.cuda.current_stream(self.device).wait_event(ticket)

    def finish(self) -> None:
        """Let the host wait for all copies."""
        self.stream.synchronize()


class _Written(NamedTuple):
    """The content of the outgoing buffer: the place of each class, the tables, and the ticket of the write-back."""

    places: dict[int, int]
    names: frozenset[str]
    ticket: Any


class HostRows:
    """Copy the rows of a batch from tables in host memory to a device, and back.

    Args:
        tables: by name, each (C, ...) in host memory, from `own_pages`. For a GPU they are pinned while this object
            lives.
        count: rows per batch, C'.
        device: the device that uses the rows.
        copier: copies the rows; None picks the copier for the device.
    """

    def __init__(
        self, tables: Mapping[str, Tensor], count: int, device: torch.device, copier: DirectCopier | None = None
    ) -> None:
        self.tables, self.count = dict(tables), count
        self.copier = copier or (StreamCopier(device) if device.type == "cuda" else DirectCopier())
        pinned: list[int] = []
        weakref.finalize(self, _release, self.copier, pinned)  # before pinning, because a later `pin` may fail
        if device.type == "cuda":
            for table in self.tables.values():
                pinned.append(pin(table, device))
        self.incoming, self.outgoing = (
            {name: table.new_empty((count, *table.shape[1:]), device=device) for name, table in self.tables.items()}
            for _ in range(2)
        )
        self._announced: tuple[list[int], Any] | None = None
        self._written: _Written | None = None

    def announce(self, classes: Tensor) -> None:
        """Start to fetch the rows of ``classes`` ((C',) int64 on the CPU) for the next `take`."""
        order = self._order(classes)
        ticket = self.copier.submit(
            (self.incoming[name][i], table[c]) for name, table in self.tables.items() for i, c in enumerate(order)
        )
        self._announced = order, ticket

    def take(self, classes: Tensor, targets: Mapping[str, Tensor]) -> None:
        """Copy the rows of ``classes`` ((C',) int64 on the CPU) into the targets, (C', ...) by table name.

        Classes that were not announced are fetched now.
        """
        if self._announced is None or self._announced[0] != self._order(classes):
            self.announce(classes)
        assert self._announced is not None
        order, ticket = self._announced
        self.copier.wait(ticket)
        for name, target in targets.items():
            target.copy_(self.incoming[name])
            if self._written is not None and name in self._written.names:
                for i, c in enumerate(order):
                    if c in self._written.places:  # it may have been fetched before its last step
                        target[i].copy_(self.outgoing[name][self._written.places[c]])
        self._announced = None

    def give(self, classes: Tensor, sources: Mapping[str, Tensor]) -> None:
        """Start to write the sources, (C', ...) by table name, back to the tables as the rows of ``classes``.

        ``classes`` are (C',) int64 on the CPU. The sources may change as soon as this returns.
        """
        order = self._order(classes)
        if self._written is not None:
            self.copier.wait(self._written.ticket)
        for name, source in sources.items():
            self.outgoing[name].copy_(source)
        ticket = self.copier.submit(
            (self.tables[name][c], self.outgoing[name][i]) for name in sources for i, c in enumerate(order)
        )
        self._written = _Written({c: i for i, c in enumerate(order)}, frozenset(sources), ticket)

    def flush(self) -> None:
        """Return when all given rows are in the tables."""
        self.copier.finish()

    def _order(self, classes: Tensor) -> list[int]:
        assert classes.device.type == "cpu", "classes of a host table are read on the host: give them on the CPU"
        assert len(classes) == self.count, f"{len(classes)} classes for {self.count} rows"
        return classes.tolist()


def _release(copier: DirectCopier, pinned: list[int]) -> None:
    copier.finish()
    for address in pinned:
        unpin(address)
