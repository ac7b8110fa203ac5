"""Class prompts in host memory, for a table that is too large for a GPU: only each batch's rows are on the GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vptsp_core.method.class_prompts import ClassPrompts
from vptsp_core.system.host_memory import own_pages, pin, unpin


class HostPrompts(ClassPrompts):
    """Row-wise `ClassPrompts` whose table and moments stay in host memory. This changes no numbers.

    The copies are queued on the GPU, so it fetches a batch's rows only after the previous step's rows are back. The
    host does not wait for it, except in `flush`.

    The tables of ``prompts`` are moved, one at a time, into memory pages of their own, which are pinned for a GPU.
    Raises VptspError: there is not enough host memory.
    """

    def __init__(self, prompts: ClassPrompts) -> None:
        assert prompts.rowwise, "every step changes all rows of a dense table: it stays on the device"
        nn.Module.__init__(self)
        self.rowwise, self.moments = True, prompts.moments
        for name in ("table", *prompts.moments):
            tensor = getattr(prompts, name)
            self.register_buffer(name, _in_own_pages(tensor, tensor.dtype))
            delattr(prompts, name)  # its memory is needed for the next one
        self.rows = prompts.rows
        self._unpin: Callable[[], Any] | None = None
        self.register_state_dict_pre_hook(lambda module, *_: module.flush())
        self.register_load_state_dict_pre_hook(lambda module, *_: module.flush())

    @torch.no_grad()
    def swap_in(self, classes: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Do what `ClassPrompts.swap_in` does. ``classes`` are (C',) on the CPU, so that nothing waits for the GPU.
        Raises VptspError: the table cannot be pinned.
        """
        self._pin()
        order = self._order(classes)
        for name, slot in self.slots(optimizer).items():
            table = getattr(self, name)
            for i, c in enumerate(order):
                slot[i].copy_(table[c], non_blocking=self.rows.is_cuda)

    @torch.no_grad()
    def swap_out(self, classes: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Do what `ClassPrompts.swap_out` does. ``classes`` are (C',) on the CPU."""
        order = self._order(classes)
        for name, slot in self.slots(optimizer).items():
            table = getattr(self, name)
            for i, c in enumerate(order):
                table[c].copy_(slot[i], non_blocking=self.rows.is_cuda)

    def flush(self) -> None:
        """Wait until the table and its moments contain every row that was put back. Call this before reading them."""
        if self.rows.is_cuda:
            torch.cuda.synchronize(self.rows.device)

    def _order(self, classes: Tensor) -> list[int]:
        assert classes.device.type == "cpu", "classes of a host table are read on the host: give them on the CPU"
        assert len(classes) == len(self.rows), f"{len(classes)} classes for {len(self.rows)} rows"
        return classes.tolist()

    def _pin(self) -> None:
        """Pin the tables for a GPU, until this module moves or no longer exists."""
        if not self.rows.is_cuda or self._unpin is not None:
            return
        addresses: list[int] = []
        self._unpin = weakref.finalize(self, unpin, addresses, self.rows.device)  # first: a later `pin` may fail
        for table in self.tables().values():
            addresses.append(pin(table, self.rows.device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassPrompts:
        """Move the module, as `nn.Module.to` and similar methods do. Tensors in host memory only change their dtype."""
        self.flush()
        if self._unpin is not None:
            self._unpin()
            self._unpin = None
        kept = {name: self._buffers.pop(name) for name in self.tables()}
        try:
            super()._apply(fn, recurse)
        finally:
            for name, tensor in kept.items():
                assert tensor is not None
                same = tensor.dtype == self.rows.dtype
                self._buffers[name] = tensor if same else _in_own_pages(tensor, self.rows.dtype)
        return self


def _in_own_pages(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return own_pages(tuple(tensor.shape), dtype).copy_(tensor)
