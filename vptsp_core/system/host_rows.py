"""Tables too large for a GPU stay in host memory; only a batch's rows travel, and behind the computing.

The main stream computes, a side stream copies, in the order in which copies were submitted. For batch t:

    main   take(t) | forward, backward, optimiser | give(t) | take(t+1) | forward, backward, ...
    side           | fetch(t+1)                             | write back(t) ;  fetch(t+2) ...

What could go wrong, and why it does not:
- a class of both t and t+1 is fetched before t's step: `take` has its rows from the outgoing buffer, still there;
- fetch(t+1) overwrites what take(t) reads: a submitted copy starts after all that was computed until then;
- give(t) overwrites what write back(t-1) reads: it waits for that first;
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

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device, not only for the current one


def check_room(size: int) -> None:
    """Refuse a table of so many bytes before it is filled, and the system ends the process.
    Raises VptspError: this machine's memory cannot hold it.
    """
    if size > (available := available_memory()):
        raise VptspError(
            f"no host memory for a class-prompt table of {size / 1e9:.1f} GB ({available / 1e9:.1f} GB are available); "
            "lower class_prompts or class_layers"
        )


def own_pages(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros in memory pages that hold nothing else, so that they can be pinned alone; committed when first touched.

    The pages are shared with processes that are forked: none must move, by copy on write, what a GPU is reading.
    ``shape`` is (rows, ...).
    Raises VptspError: more than there is.
    """
    size = math.prod(shape) * dtype.itemsize
    check_room(size)
    pages = mmap.mmap(-1, max(size, 1))
    return torch.frombuffer(pages, dtype=dtype, count=math.prod(shape)).view(shape)


def pin(table: Tensor, device: torch.device) -> int:
    """Register the memory of a table (rows, ...) with CUDA where it is, and return its address for `unpin`.

    ``Tensor.pin_memory`` would copy it, into an allocation rounded up to a power of two.
    Raises VptspError: the system does not let so much memory be locked.
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
    """The inverse of `pin`."""
    torch.cuda.cudart().cudaHostUnregister(address)


class DirectCopier:
    """Copies at once: the device is the host. A subclass may copy beside the computing, one after another."""

    def submit(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Any:
        """Copy now: pairs of target and source, each of one shape (...). Returns a ticket for `wait`."""
        for target, source in pairs:
            target.copy_(source)

    def wait(self, ticket: Any) -> None:
        """Whatever is computed from now on comes after the copies of the ticket: nothing to do, they are made."""

    def finish(self) -> None:
        """Return when every copy has been made: at once."""


class StreamCopier(DirectCopier):
    """Copies on a CUDA stream of its own; tickets are events. The host waits for nothing but `finish`."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def submit(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> torch.cuda.Event:
        """Begin to copy once what the current stream has been given is done; pairs of one shape (...) each."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        return self.stream.record_event()

    def wait(self, ticket: torch.cuda.Event) -> None:
        """Let the current stream, not the host, wait for the event."""
        torch.cuda.current_stream(self.device).wait_event(ticket)

    def finish(self) -> None:
        """Let the host wait for all copies."""
        self.stream.synchronize()


class _Written(NamedTuple):
    """What the outgoing buffer holds: the place of each class, the tables it has rows of, its write-back."""

    places: dict[int, int]
    names: frozenset[str]
    ticket: Any


class HostRows:
    """The rows of a batch out of tables in host memory, and back into them.

    Args:
        tables: by name, each (C, ...) in host memory, from `own_pages`; pinned for as long as this object lives where
            the device is a GPU.
        count: rows a batch, C'.
        device: where the rows are wanted.
        copier: how rows travel; None for what suits the device.
    """

    def __init__(
        self, tables: Mapping[str, Tensor], count: int, device: torch.device, copier: DirectCopier | None = None
    ) -> None:
        self.tables, self.count = dict(tables), count
        self.copier = copier or (StreamCopier(device) if device.type == "cuda" else DirectCopier())
        pinned: list[int] = []
        weakref.finalize(self, _release, self.copier, pinned)  # before the first is pinned: the second may fail
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
        """Begin to fetch the rows of ``classes`` ((C',) int64 on the CPU), which the next `take` is to ask for."""
        order = self._order(classes)
        ticket = self.copier.submit(
            (self.incoming[name][i], table[c]) for name, table in self.tables.items() for i, c in enumerate(order)
        )
        self._announced = order, ticket

    def take(self, classes: Tensor, targets: Mapping[str, Tensor]) -> None:
        """Put the rows of ``classes`` ((C',) int64 on the CPU) into the targets, (C', ...) by name of the table;
        announced or not.
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
                    if c in self._written.places:  # fetched perhaps before the step that moved it
                        target[i].copy_(self.outgoing[name][self._written.places[c]])
        self._announced = None

    def give(self, classes: Tensor, sources: Mapping[str, Tensor]) -> None:
        """Begin to write the sources, (C', ...) by name of the table, back as the rows of ``classes`` ((C',) int64 on
        the CPU); the sources may change at once.
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
        """Return when the tables hold all that was given."""
        self.copier.finish()

    def _order(self, classes: Tensor) -> list[int]:
        assert classes.device.type == "cpu", "classes of a host table are read on the host: give them on the CPU"
        assert len(classes) == self.count, f"{len(classes)} classes for {self.count} rows"
        return classes.tolist()


def _release(copier: DirectCopier, pinned: list[int]) -> None:
    copier.finish()
    for address in pinned:
        unpin(address)
