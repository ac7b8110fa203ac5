"""Class prompts in host memory, for a table that is too large for a GPU: only each batch's rows are on the GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vptsp_core.method.class_prompts import ClassPrompts
from vptsp_core.system.host_rows import HostRows, own_pages


class HostPrompts(ClassPrompts):
    """Row-wise `ClassPrompts` whose table and moments stay in host memory. This changes no numbers.

    The tables of ``prompts`` are copied into memory pages of their own, which can be pinned.
    Raises VptspError: there is not enough host memory.
    """

    def __init__(self, prompts: ClassPrompts) -> None:
        assert prompts.rowwise, "every step changes all rows of a dense table: it stays on the device"
        nn.Module.__init__(self)
        self.rowwise, self.moments = True, prompts.moments
        for name, tensor in prompts.tables().items():
            self.register_buffer(name, _in_own_pages(tensor, tensor.dtype))
        self.rows = prompts.rows
        self._host: HostRows | None = None
        # No bound methods: a copy of the module would flush the original.
        self.register_state_dict_pre_hook(lambda module, *_: module.flush())
        self.register_load_state_dict_pre_hook(lambda module, *_: module._forget())

    @torch.no_grad()
    def swap_in(self, classes: Tensor, optimizer: torch.optim.Optimizer, upcoming: Tensor | None = None) -> None:
        """Do what `ClassPrompts.swap_in` does, and start to fetch the rows of ``upcoming``, the next batch's classes.

        ``classes`` and ``upcoming`` are (C',) on the CPU, so that nothing waits for the GPU. If ``classes`` are not the
        ``upcoming`` of the call before, their rows are fetched now.
        """
        self.host_rows().take(classes, self.slots(optimizer))
        if upcoming is not None:
            self.host_rows().announce(upcoming)

    @torch.no_grad()
    def swap_out(self, classes: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Do what `ClassPrompts.swap_out` does. ``classes`` are (C',) on the CPU."""
        self.host_rows().give(classes, self.slots(optimizer))

    def host_rows(self) -> HostRows:
        """Return the object that copies rows to and from host memory. The first call makes it, for the rows' device.
        Raises VptspError: the table cannot be pinned.
        """
        if self._host is None:
            self._host = HostRows(self.tables(), len(self.rows), self.rows.device)
        return self._host

    def flush(self) -> None:
        """Wait until the table and its moments contain every row that was put back. Call this before reading them."""
        if self._host is not None:
            self._host.flush()

    def _forget(self) -> None:
        """Drop the rows that were fetched ahead, because the table or its device is about to change."""
        self.flush()
        self._host = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassPrompts:
        """Move the module, as `nn.Module.to` and similar methods do. Tensors in host memory only change their dtype."""
        self._forget()
        kept = {name: self._buffers.pop(name) for name in self.tables()}
        try:
            super()._apply(fn, recurse)
        finally:
            for name, tensor in kept.items():
                assert tensor is not None
                same = tensor.dtype == self.rows.dtype
                self._buffers[name] = tensor if same else _in_own_pages(tensor, self.rows.dtype)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> HostPrompts:
        """Copy the module into memory pages of its own, after `flush`."""
        self.flush()
        for tensor in self.tables().values():
            memo[id(tensor)] = _in_own_pages(tensor, tensor.dtype)
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy({**self.__dict__, "_host": None}, memo))
        return twin


def _in_own_pages(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return own_pages(tuple(tensor.shape), dtype).copy_(tensor)
