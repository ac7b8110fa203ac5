"""Class prompts whose table is too large for a GPU: it stays in host memory, and each batch's rows are copied."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vptsp_core.method.class_prompts import ClassPrompts
from vptsp_core.system.host_rows import HostRows, own_pages


class HostPrompts(ClassPrompts):
    """`ClassPrompts`, row-wise, with table and moments in host memory wherever the module goes; the same numbers. It
    takes the place of ``prompts``, whose tables are copied into pages of their own, which can be pinned.
    Raises VptspError: there is not so much host memory.
    """

    def __init__(self, prompts: ClassPrompts) -> None:
        assert prompts.rowwise, "a dense table learns as a whole: it stays with the model"
        nn.Module.__init__(self)
        self.rowwise, self.moments = True, prompts.moments
        for name, tensor in prompts.tables().items():
            self.register_buffer(name, _in_own_pages(tensor, tensor.dtype))
        self.rows = prompts.rows
        self._host: HostRows | None = None
        # Not bound methods: a copy of the module must not flush the original.
        self.register_state_dict_pre_hook(lambda module, *_: module.flush())
        self.register_load_state_dict_pre_hook(lambda module, *_: module._forget())

    @torch.no_grad()
    def swap_in(self, classes: Tensor, optimizer: torch.optim.Optimizer, upcoming: Tensor | None = None) -> None:
        """As `ClassPrompts.swap_in`; the rows of ``upcoming`` are sent while this batch computes.

        Both are (C',) on the CPU, so that nothing waits for the GPU. Other rows than the announced ones are fetched
        when they are asked for.
        """
        self.host_rows().take(classes, self.slots(optimizer))
        if upcoming is not None:
            self.host_rows().announce(upcoming)

    @torch.no_grad()
    def swap_out(self, classes: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """As `ClassPrompts.swap_out`; ``classes`` (C',) are on the CPU."""
        self.host_rows().give(classes, self.slots(optimizer))

    def host_rows(self) -> HostRows:
        """What carries rows to and from host memory; made at first need, when the device of the rows is known.
        Raises VptspError: the table cannot be pinned.
        """
        if self._host is None:
            self._host = HostRows(self.tables(), len(self.rows), self.rows.device)
        return self._host

    def flush(self) -> None:
        """Return when the table and its moments hold every row that was put back; reading them comes after this."""
        if self._host is not None:
            self._host.flush()

    def _forget(self) -> None:
        """The table or its device is about to change: what was fetched ahead counts no more."""
        self.flush()
        self._host = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassPrompts:
        """`nn.Module.to` and its kin come here: what is in host memory changes its dtype only."""
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
        """A copy with every row that was put back, in pages of its own."""
        self.flush()
        for tensor in self.tables().values():
            memo[id(tensor)] = _in_own_pages(tensor, tensor.dtype)
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy({**self.__dict__, "_host": None}, memo))
        return twin


def _in_own_pages(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return own_pages(tuple(tensor.shape), dtype).copy_(tensor)
