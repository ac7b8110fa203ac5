"""The class prompts of all classes: a learnable table, or rows that are swapped in and out of one around each step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vptsp_core.system.devices import to_device
from vptsp_core.system.host_rows import HostRows, own_pages

# Per-element optimiser state, by the names torch.optim gives it; the step count is one for the whole table.
MOMENTS = {"sgd": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq")}


class ClassPrompts(nn.Module):
    """m prompts in each of L_c blocks for each of C classes, with either of the released optimiser semantics.

    dense: one learnable table; momentum and Adam state also move classes that are absent from the batch.
    rowwise: the batch's rows, with their optimiser state, are swapped into a small parameter and back; absent rows
    and their state do not move, and the optimiser's step count is common to all rows (method.md, "memory bank").
    The table lies beside the rows, or after `to_host` in host memory: the same numbers.

    Args:
        shape: (C, L_c, m, D).
        batch_classes: classes a batch, C', the rows swapped in.
        optimizer: name of the optimiser, which decides the state kept per row (rowwise only).
    """

    table: Tensor

    def __init__(self, shape: tuple[int, int, int, int], *, rowwise: bool, batch_classes: int, optimizer: str) -> None:
        super().__init__()
        num_classes, _, count, width = shape
        table = own_pages(shape) if rowwise else torch.empty(shape)
        table.normal_(std=(2 / ((num_classes + count) * width)) ** 0.5)  # Xavier over (C, m, D)
        self.rowwise, self.on_host = rowwise, False
        self.moments = MOMENTS[optimizer] if rowwise else ()
        self._host: HostRows | None = None
        if rowwise:
            self.register_buffer("table", table)
            self.rows = nn.Parameter(torch.zeros(batch_classes, *shape[1:]))
            for name in self.moments:
                self.register_buffer(name, own_pages(shape))
            self.register_state_dict_pre_hook(_before_saving)
            self.register_load_state_dict_pre_hook(_before_loading)
        else:
            self.table = nn.Parameter(table)

    def to_host(self) -> None:
        """Keep table and moments (rowwise) in host memory from now on, wherever the module goes."""
        assert self.rowwise, "a dense table learns as a whole: it lies where the model lies"
        self.on_host = True
        for name in self._tables():
            tensor = getattr(self, name)
            if tensor.device.type != "cpu":
                setattr(self, name, _in_own_pages(tensor, tensor.dtype))

    def table_bytes(self) -> int:
        """Size of the table and its moments (rowwise)."""
        return sum(getattr(self, name).nbytes for name in self._tables())

    def forward(self, classes: Tensor) -> Tensor:
        """The prompts of a batch's classes: (C',) -> (C', L_c, m, D); rowwise after `swap_in` of the same classes."""
        return self.rows if self.rowwise else self.table.index_select(0, classes)

    @torch.no_grad()
    def swap_in(self, classes: Tensor, optimizer: torch.optim.Optimizer, upcoming: Tensor | None = None) -> None:
        """Before the forward pass: fetch the rows of ``classes`` and their optimiser state (rowwise; else nothing).

        Args:
            classes: (C',) int64, each once; on the CPU for a table in host memory, so that nothing waits for the GPU.
            upcoming: those of the next batch where they are known. A table in host memory sends their rows while this
                batch computes; other rows than the announced ones are fetched on the spot.
        """
        if not self.rowwise:
            return
        slots = self._slots(optimizer)
        if self.on_host:
            self.host_rows().take(classes, slots)
            if upcoming is not None:
                self.host_rows().announce(upcoming)
        else:
            classes = to_device(classes, self.table.device)
            for name, slot in slots.items():
                slot.copy_(getattr(self, name).index_select(0, classes))

    @torch.no_grad()
    def swap_out(self, classes: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """After the optimiser's step: put the rows of ``classes`` ((C',) int64) and their state back (rowwise; else
        nothing)."""
        if not self.rowwise:
            return
        slots = self._slots(optimizer)
        if self.on_host:
            self.host_rows().give(classes, slots)
        else:
            classes = to_device(classes, self.table.device)
            for name, slot in slots.items():
                getattr(self, name).index_copy_(0, classes, slot)

    def host_rows(self) -> HostRows:
        """What carries rows to and from host memory; made at first need, when the device of the rows is known.

        Raises:
            VptspError: the table cannot be pinned.
        """
        assert self.on_host
        if self._host is None:
            tables = {name: getattr(self, name) for name in self._tables()}
            self._host = HostRows(tables, len(self.rows), self.rows.device)
        return self._host

    def flush(self) -> None:
        """Return when the table and its moments hold every row that was put back; reading them comes after this."""
        if self._host is not None:
            self._host.flush()

    def _forget(self) -> None:
        """The table or its device is about to change: what was fetched ahead counts no more."""
        self.flush()
        self._host = None

    def _tables(self) -> tuple[str, ...]:
        return ("table", *self.moments) if self.rowwise else ()

    def _slots(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Where the batch's rows and their state are on the device, by table."""
        state: dict[str, Any] = optimizer.state.get(self.rows, {})
        # Before the first step torch has no state, and ours are zeros.
        found = {name: state[name] for name in self.moments if state.get(name) is not None}
        return {"table": self.rows, **found}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassPrompts:
        """`nn.Module.to` and its kin come here: what lies in host memory changes its dtype only."""
        if not self.on_host:
            return super()._apply(fn, recurse)
        self._forget()
        kept = {name: self._buffers.pop(name) for name in self._tables()}
        try:
            super()._apply(fn, recurse)
        finally:
            for name, tensor in kept.items():
                assert tensor is not None
                same = tensor.dtype == self.rows.dtype
                self._buffers[name] = tensor if same else _in_own_pages(tensor, self.rows.dtype)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ClassPrompts:
        """A copy with every row that was put back, in pages of its own; it makes its own `HostRows` at first need."""
        self.flush()
        for name in self._tables():
            tensor = getattr(self, name)
            if tensor.device.type == "cpu":
                memo[id(tensor)] = _in_own_pages(tensor, tensor.dtype)
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy({**self.__dict__, "_host": None}, memo))
        return twin


def _in_own_pages(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return own_pages(tuple(tensor.shape), dtype).copy_(tensor)


# Functions of the module, not bound methods: a copy of the module must not flush the original.
def _before_saving(module: nn.Module, *_: Any) -> None:
    assert isinstance(module, ClassPrompts)
    module.flush()


def _before_loading(module: nn.Module, *_: Any) -> None:
    assert isinstance(module, ClassPrompts)
    module._forget()
